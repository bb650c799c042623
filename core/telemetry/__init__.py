"""What a server tells about its requests: traces, and structured logs."""
