"""The options of a model served by vLLM; read by people, validated when the registry loads."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from sixfold.plugins.llm.lora_options import LoraOptions


class VllmOptions(BaseModel):
    """Options of the family ``llm/vllm``. Null leaves the choice to vLLM."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and activations. ``auto``: what the model's files say."""

    max_model_len: int | None = Field(default=None, ge=2)
    """Longest prompt plus answer in tokens; the model's own limit unless given."""

    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of the GPU's memory that this model may take: weights, activations and cache."""

    kv_cache_bytes: int | None = Field(default=None, ge=1)
    """Memory of the key/value cache, instead of what ``gpu_memory_utilization`` leaves."""

    kv_cache_dtype: str = "auto"
    """Type of the cache, such as ``fp8``; ``auto`` is that of the model."""

    quantization: str | None = None
    """How weights are quantised, such as ``fp8`` or ``awq``; null: what the model's files say."""

    load_format: str = "auto"
    """How weights are read; ``dummy`` makes random ones, for measurements."""

    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that share each layer."""

    pipeline_parallel_size: int = Field(default=1, ge=1)
    """Groups of GPUs that hold the layers one after another."""

    data_parallel_size: int = Field(default=1, ge=1)
    """Copies of the model inside one engine; the experts of a mixture can be spread over them."""

    enable_expert_parallel: bool = False
    """Whether a mixture's experts are spread over GPUs whole, instead of each being cut."""

    max_num_seqs: int | None = Field(default=None, ge=1)
    """Sequences in one step."""

    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    """Tokens in one step: larger for throughput, smaller for even gaps between tokens."""

    prefix_cache: Literal["shared", "per_key", "off"] = "per_key"
    """Whose computed prefixes a request may use: everybody's, those of the same API key, or nobody's."""

    tool_call_parser: Literal["auto", "none", "hermes", "llama3_json", "mistral", "mistral_args"] = "auto"
    """How the model writes calls of tools. ``auto``: as its chat template shows; ``none`` refuses tools."""

    reasoning_parser: Literal["auto", "none", "think"] = "auto"
    """Whether ``<think>`` blocks are kept apart from answers. ``auto``: if the chat template speaks of them."""

    enforce_eager: bool = False
    """Whether CUDA graphs and compilation are left out: a faster start, slower steps."""

    speculative_config: dict[str, JsonValue] | None = None
    """vLLM's own settings for drafting tokens, such as ``{method: ngram, num_speculative_tokens: 4}``."""

    lora: LoraOptions | None = None
    """LoRA adapters over the model; without it the model can have none."""

    kv_transfer_config: dict[str, JsonValue] | None = None
    """vLLM's own settings for moving caches between engines."""

    kv_events_config: dict[str, JsonValue] | None = None
    """vLLM's own settings for publishing what the cache holds."""

    sleep_after_s: float | None = Field(default=None, gt=0)
    """Idle seconds after which the model leaves the GPU's memory; the next request brings it back. Null: never."""

    engine_args: dict[str, JsonValue] = {}
    """Any other field of vLLM's ``AsyncEngineArgs``; checked against the installed version."""
