"""Relevance of documents to a query: cross-encoders, and the similarity of embedding models."""
