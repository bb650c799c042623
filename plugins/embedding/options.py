"""The options of an embedding model's registry entry."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class EmbeddingOptions(BaseModel):
    """What an operator may set for a model of ``embedding/sentence-transformers``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the transformer's weights. ``auto`` is float32, equal to sentence-transformers; bfloat16 is about twice
    as fast where the hardware has it, at a cosine of 0.9998 and better to float32."""
    max_seq_length: int | None = Field(default=None, ge=1)
    """Longest input in tokens; only ever shorter than what the model can take. None takes the model's own."""
    default_prompt_name: str | None = None
    """Prompt for texts whose request names none. None takes the model's own default, usually no prompt."""
    max_inputs: int = Field(default=2048, ge=1)
    """Most inputs in one request."""
    cuda_graph_tokens: int = Field(default=16_384, ge=0)
    """On a GPU, steps of up to so many tokens are recorded as CUDA graphs when the model loads; 0 records none, which
    saves the memory of one such step."""
    parallel_tokens: int | None = Field(default=None, ge=2)
    """Where the entry has `parallel`: documents of at least so many tokens are computed by all ranks, shorter ones by the first
    alone. 2048 on GPUs and 256 on CPUs unless given."""
    rerank_by_similarity: bool = False
    """Whether rerank and score requests are answered by the similarity of the model's vectors when they do not say."""
