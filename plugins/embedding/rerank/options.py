"""The options of a cross-encoder's registry entry."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class CrossEncoderOptions(BaseModel):
    """What an operator may set for a model of ``embedding/cross-encoder``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights. ``auto`` is float32, equal to sentence-transformers."""
    max_seq_length: int | None = Field(default=None, ge=1)
    """Longest pair in tokens; only ever shorter than what the model can take. None takes the model's own."""
    truncate: bool = False
    """Whether longer pairs are cut (the longer text first) when a request says nothing; else they are an error. Cohere's
    and Jina's clients can't ask for it themselves."""
    max_inputs: int = Field(default=2048, ge=1)
    """Most pairs in one request."""
