"""What a family is asked about memory before one of its models loads, and what it answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel

from sixfold.core.runtime.quantization.policy import QuantizationPolicy

HOST = "cpu"
"""The device whose memory is the host's."""

TORCH_PROCESS_BYTES = 400 << 20
"""A worker's own memory before its weights: the interpreter, torch, transformers or diffusers, their tables; measured with
torch 2.13 for CPUs. Pages of libraries are not in it: all workers share them."""


class MemoryKind(StrEnum):
    """What a part of a model's memory is for."""

    WEIGHTS = "weights"
    CACHE = "cache"
    WORKING = "working"
    PROCESS = "process"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryQuestion:
    """What a model would take: asked in the serving process, which has no torch.

    Attributes:
        path: The model's resolved files.
        options: The validated options of its entry.
        device: ``cpu`` or ``cuda:N``.
        num_threads: CPU threads that the replica may use for steps.
        total_bytes: The device's memory.
        free_bytes: What other models leave of it, for defaults that are a share of it.
        has_bfloat16: Whether the device multiplies bfloat16 natively, for types that are chosen by that.
        quantization: The policy of its entry; None for weights as the files or options have them.
    """

    path: Path
    options: BaseModel
    device: str
    num_threads: int
    total_bytes: int
    free_bytes: int
    has_bfloat16: bool
    quantization: QuantizationPolicy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """What one replica takes; figures from files and options, so upper bounds rather than measurements.

    Attributes:
        weights_bytes: On the model's device, as they are laid out there.
        cache_bytes: Fixed buffers on the device that grow with nothing, such as a key/value cache.
        cache_share: Takes this share of what is free beside the rest as cache, if that is more than ``cache_bytes``.
        cache_token_bytes: What one token takes of the cache; 0 where it does not hold tokens.
        cache_option: The option by which people set the size of the cache; empty if there is none.
        working_bytes: On the device, for the largest step.
        loading_bytes: The weights as they lie on the device until they are quantized, before there is a cache; 0 where
            loading takes no more than serving.
        process_bytes: In host memory: the interpreter and its libraries.
    """

    weights_bytes: int
    cache_bytes: int = 0
    cache_share: float = 0.0
    cache_token_bytes: int = 0
    cache_option: str = ""
    working_bytes: int = 0
    loading_bytes: int = 0
    process_bytes: int = TORCH_PROCESS_BYTES

    def claims(self, device: str, free_bytes: int, *, num_replicas: int = 1) -> tuple[Claim, ...]:
        """What all replicas take of each device, with a cache that fills its share of ``free_bytes``.

        What loading takes beyond that counts as working memory.
        """
        n = num_replicas
        fixed_bytes = self.weights_bytes + self.working_bytes + (self.process_bytes if device == HOST else 0)
        elastic_bytes = math.floor(self.cache_share * max(0, free_bytes // n - fixed_bytes))
        cache_bytes = max(self.cache_bytes, elastic_bytes)
        working_bytes = self.working_bytes + max(0, self.loading_bytes - self.weights_bytes - cache_bytes)
        parts = (
            Claim(device=HOST, kind=MemoryKind.PROCESS, num_bytes=n * self.process_bytes),
            Claim(device=device, kind=MemoryKind.WEIGHTS, num_bytes=n * self.weights_bytes),
            Claim(device=device, kind=MemoryKind.CACHE, num_bytes=n * cache_bytes),
            Claim(device=device, kind=MemoryKind.WORKING, num_bytes=n * working_bytes),
        )
        return tuple(claim for claim in parts if claim.num_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A part of a device's memory that one model has, or would have."""

    device: str
    kind: MemoryKind
    num_bytes: int


def format_bytes(num_bytes: int) -> str:
    """A size for people: ``1.5 GiB``, ``300 MiB``."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if abs(num_bytes) >= unit:
            value = num_bytes / unit
            return f"{value:.1f} {name}" if value < 100 else f"{value:.0f} {name}"
    return f"{num_bytes} B"
