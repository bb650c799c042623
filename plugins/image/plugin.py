"""Entry point of the image generation plugin. It registers no family yet, so no model of this modality can be served."""
