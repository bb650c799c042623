"""The tokenization and media pools: prepare inputs beside the running steps."""
