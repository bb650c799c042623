"""The video plugin."""
