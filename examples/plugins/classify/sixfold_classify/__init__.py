"""A new modality: text classification by any ForSequenceClassification of transformers, at POST /v1/classify."""
