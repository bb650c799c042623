"""A new modality: text classification by encoders of transformers (BERT, RoBERTa and others), at POST /v1/classify."""
