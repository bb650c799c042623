"""``sixfold up``: a gateway, an agent and replicas on a Ray cluster, of one configuration file."""
