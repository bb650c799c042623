"""The options of a model served by the native runtime; read by people, validated when the registry loads."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sixfold.core.source_ref import SourceRef
from sixfold.plugins.llm.lora_options import LoraOptions


class SpeculationOptions(BaseModel):
    """How tokens are guessed ahead, to be verified several at a time."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    method: Literal["off", "ngram", "draft", "eagle3"] = "ngram"
    """``ngram``: what followed in prompt and answer when they last read the same. ``draft``: what a smaller model says.
    ``eagle3``: what a head says that reads the model's hidden states and was trained for it."""

    source: SourceRef | None = None
    """The smaller model of ``draft``, or the head of ``eagle3``, as a model's ``source``. A smaller model must have the same
    tokenizer."""

    num_tokens: int = Field(default=7, ge=1, le=64)
    """Most tokens guessed per step; fewer where guesses turn out wrong."""

    min_match: int = Field(default=1, ge=1, le=64)
    """Least tokens that must read the same."""

    max_match: int = Field(default=8, ge=1, le=64)
    """Most tokens that are compared; at least ``min_match``."""

    max_sequences: int = Field(default=8, ge=1, le=1024)
    """Nothing is guessed in steps of more sequences: their rows are work enough for the processor. In steps of fewer, only
    what is the more likely the more they are."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.method in ("draft", "eagle3")) != (self.source is not None):
            raise ValueError("source must be given with method: draft or eagle3, and only with these")
        if self.max_match < self.min_match:
            raise ValueError(f"max_match ({self.max_match}) must be at least min_match ({self.min_match})")
        return self


class KvEventOptions(BaseModel):
    """Where a router hears which prefixes are cached, in vLLM's wire format over ZMQ."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    endpoint: str
    """Where the PUB socket is bound, such as ``tcp://*:5557``; a port of ``*`` takes a free one, see ``/v1/models``."""

    replay_endpoint: str | None = None
    """Where the ROUTER socket for missed batches is bound; there is none by default."""

    topic: str = ""
    """First frame of every message."""


class KvTransferOptions(BaseModel):
    """How computed prompts leave for other processes and come from them (disaggregated prefill and decode).

    Peers are trusted as the model's own files are: what they send is taken for the prompt's keys and values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    listen: str | None = None
    """Where others fetch from: ``HOST:PORT`` (the address that they reach; port 0 takes a free one), or ``shm`` for
    processes of this host. Without it, nothing leaves."""

    peers: tuple[str, ...] = ()
    """Whom handles may point to: ``HOST``, ``HOST:PORT``, or ``shm``. Without it, nothing is fetched."""

    lease_s: float = Field(default=30.0, gt=0, le=3600)
    """How long a finished prompt is kept for whoever was given its handle."""

    timeout_s: float = Field(default=30.0, gt=0, le=600)
    """Longest transfer; after it, the prompt is computed."""

    @field_validator("listen")
    @classmethod
    def _listens_on_one_address(cls, value: str | None) -> str | None:
        if value is not None and value != "shm":
            host, colon, port = value.rpartition(":")
            if not (host and colon and port.isdecimal()) or host in ("0.0.0.0", "[::]", "*"):
                raise ValueError(f"must be shm, or HOST:PORT with the address that others reach, not {value!r}")
        return value


class TransformersOptions(BaseModel):
    """Options of the family ``llm/transformers``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of weights and cache. ``auto``: bfloat16 where the processor multiplies it natively, else float32."""

    max_model_len: int | None = Field(default=None, ge=2)
    """Longest prompt plus answer in tokens; the model's own limit unless given."""

    kv_cache_bytes: int | None = Field(default=None, ge=1)
    """Memory of the key/value cache. Default: on CPU 1 GiB, at most half of the free memory; else 80% of what is free."""

    kv_offload_bytes: int | None = Field(default=None, ge=1)
    """Host memory for cached prefixes that the cache on a GPU has no room for; they come back when they are asked for. None
    unless given; pointless on CPU, where it is refused."""

    block_size_tokens: int = Field(default=16, ge=1, le=1024)
    """Tokens per cache block: the unit of allocation and of prefix reuse."""

    prefix_cache: Literal["shared", "per_key", "off"] = "per_key"
    """Whose computed prefixes a request may use: everybody's, those of the same API key, or nobody's."""

    speculation: SpeculationOptions = SpeculationOptions()
    """How tokens are guessed ahead."""

    lora: LoraOptions | None = None
    """LoRA adapters over the model; without it the model can have none."""

    compute_packed: bool = True
    """Whether linear layers are packed for the processor and merged where they share an input."""

    images: bool = True
    """Whether images in chats are read, where the model can."""

    max_images: int = Field(default=16, ge=1, le=1024)
    """Most images of a request."""

    max_image_pixels: int = Field(default=33_554_432, ge=4096)
    """Largest image, as width times height; larger ones are refused before a pixel is decoded."""

    cuda_graph_rows: int = Field(default=256, ge=0, le=4096)
    """On GPUs, steps of up to so many tokens are recorded when the model starts and replayed as CUDA graphs; 0: none."""

    steps_ahead: bool | None = None
    """Whether a step begins before the answers of the one before are handed out. The tokens are the same and come at shorter
    intervals. On GPUs unless given: a CPU has nothing to do it beside."""

    parallel_prompt_tokens: int | None = Field(default=None, ge=2)
    """Where the entry has `parallel`: chunks of prompts of at least so many tokens are computed by all ranks, shorter ones by the
    first alone. 2048 on GPUs and 256 on CPUs unless given."""

    kv_events: KvEventOptions | None = None
    """Announces cached prefixes to routers."""

    kv_transfer: KvTransferOptions | None = None
    """Exchanges computed prompts with other processes."""

    tool_call_parser: Literal["auto", "none", "hermes", "llama3_json", "mistral", "mistral_args"] = "auto"
    """How the model writes calls of tools. ``auto``: as its chat template shows; ``none`` refuses tools."""

    reasoning_parser: Literal["auto", "none", "think"] = "auto"
    """Whether ``<think>`` blocks are kept apart from answers. ``auto``: if the chat template speaks of them."""
