"""Several processes, and several devices, that compute the steps of one replica together."""
