"""The options of a text-and-image model's registry entry."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ClipOptions(BaseModel):
    """What an operator may set for a model of ``embedding/clip``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights. ``auto`` is float32, equal to transformers."""
    normalize: bool = False
    """Whether vectors are scaled to length 1. The model's own are not, so that only their cosine can be compared."""
    max_inputs: int = Field(default=256, ge=1)
    """Most texts and images in one request."""
    max_image_pixels: int = Field(default=50_000_000, ge=1)
    """Most pixels of an image before it is scaled down; checked before it is decoded."""
