"""The front door of many replicas."""
