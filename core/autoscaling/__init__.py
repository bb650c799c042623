"""Signals that autoscalers read."""
