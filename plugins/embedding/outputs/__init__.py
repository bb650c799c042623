"""Vectors other than one dense one a text: sparse over the vocabulary, and one for each token."""
