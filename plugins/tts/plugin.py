"""Entry point of the speech synthesis plugin. It registers no family yet, so no model of this modality can be served."""
