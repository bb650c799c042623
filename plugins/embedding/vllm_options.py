"""The options of an embedding model that vLLM runs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class VllmEmbeddingOptions(BaseModel):
    """What an operator may set for a model of ``embedding/vllm``. Null leaves the choice to vLLM."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and activations. ``auto``: what the model's files say."""
    max_seq_length: int | None = Field(default=None, ge=1)
    """Longest input in tokens; only ever shorter than what the model can take. None takes the model's own."""
    default_prompt_name: str | None = None
    """Prompt for texts whose request names none. None takes the model's own default, usually no prompt."""
    max_inputs: int = Field(default=2048, ge=1)
    """Most inputs in one request."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of the GPU's memory that this model may take."""
    kv_cache_bytes: int | None = Field(default=None, ge=1)
    """Memory of the key/value cache, instead of what ``gpu_memory_utilization`` leaves."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that share each layer."""
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    """Tokens in one step."""
    enforce_eager: bool = False
    """Whether CUDA graphs and compilation are left out: a faster start, slower steps."""
    engine_args: dict[str, JsonValue] = {}
    """Any other field of vLLM's ``AsyncEngineArgs``; checked against the installed version."""
