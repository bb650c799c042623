"""A configuration file as objects of Kubernetes: servers, the gateway before them, and what other projects run them with."""
