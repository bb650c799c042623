"""A whole modality as a pip package: it reverses text, one letter a step."""
