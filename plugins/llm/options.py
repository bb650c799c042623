"""The options of a model served by the native runtime; read by people, validated when the registry loads."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TransformersOptions(BaseModel):
    """Options of the family ``llm/transformers``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of weights and cache. ``auto``: bfloat16 where the processor multiplies it natively, else float32."""

    max_model_len: int | None = Field(default=None, ge=2)
    """Longest prompt plus answer in tokens; the model's own limit unless given."""

    kv_cache_bytes: int | None = Field(default=None, ge=1)
    """Memory of the key/value cache. Default: on CPU 1 GiB, at most half of the free memory; else 80% of what is free."""

    block_size_tokens: int = Field(default=16, ge=1, le=1024)
    """Tokens per cache block: the unit of allocation and, later, of prefix reuse."""

    compute_packed: bool = True
    """Whether linear layers are packed for the processor and merged where they share an input."""

    tool_call_parser: Literal["auto", "none", "hermes", "llama3_json", "mistral"] = "auto"
    """How the model writes calls of tools. ``auto``: as its chat template shows; ``none`` refuses tools."""

    reasoning_parser: Literal["auto", "none", "think"] = "auto"
    """Whether ``<think>`` blocks are kept apart from answers. ``auto``: if the chat template speaks of them."""
