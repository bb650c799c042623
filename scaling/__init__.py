"""Many replicas, many machines, many regions; nothing in core or plugins imports it."""
