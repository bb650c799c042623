"""Replicas: worker processes, their channel, loading and kernels that more than one family needs."""
