"""Entry point of the speech recognition plugin. It registers no family yet, so no model of this modality can be served."""
