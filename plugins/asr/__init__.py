"""The asr plugin."""
