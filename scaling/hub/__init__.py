"""Plans where replicas of many models run over many sites; never on the path of a request."""
