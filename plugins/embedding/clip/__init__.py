"""Dual encoders of texts and images in one space: CLIP, SigLIP and their like."""
