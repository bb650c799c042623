"""The first-party plugins, one package a modality; none imports another."""
