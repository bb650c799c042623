"""The LitServe application: routes, errors, keys, metrics, server-sent events and lifecycle."""
