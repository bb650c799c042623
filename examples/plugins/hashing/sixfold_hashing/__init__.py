"""A new family for a modality that exists: embeddings by hashed n-grams of letters, without weights or training."""
