"""Replicas on the machines of one Ray cluster: each is a server of its own, which the gateway reaches directly."""
