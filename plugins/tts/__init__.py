"""The tts plugin."""
