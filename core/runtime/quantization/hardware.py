"""Which methods a device runs; what it lacks is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import torch

from sixfold.core.errors import ConfigError
from sixfold.core.runtime.quantization.methods import (
    FP8_BOTH,
    FP8_CACHE,
    FP8_WEIGHTS,
    INT4_BOTH,
    INT4_WEIGHTS,
    INT8_BOTH,
    INT8_CACHE,
    INT8_WEIGHTS,
    NVFP4_BOTH,
    advice,
)
from sixfold.core.runtime.quantization.policy import Method, QuantizationPolicy
from sixfold.core.runtime.quantized_matmul import has_byte_products


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What decides which methods run.

    Attributes:
        kind: Of the device.
        capability: Of a CUDA device.
        has_byte_products: Whether this project's own kernels for 8 and 4 bits run.
        has_int4_kernels: Whether the package that torchao's int4 needs is installed.
    """

    kind: Literal["cpu", "cuda"]
    capability: tuple[int, int] = (0, 0)
    has_byte_products: bool = False
    has_int4_kernels: bool = False

    def __str__(self) -> str:
        if self.kind == "cuda":
            return f"a GPU of compute capability {self.capability[0]}.{self.capability[1]}"
        return (
            "a CPU with AVX512-VNNI and AVX512-BF16"
            if self.has_byte_products
            else "a CPU without AVX512-VNNI and -BF16"
        )


def look_at(device: torch.device) -> Hardware:
    """The hardware behind a device."""
    if device.type == "cuda":
        return Hardware(
            kind="cuda",
            capability=torch.cuda.get_device_capability(device),
            has_int4_kernels=importlib.util.find_spec("mslk") is not None,
        )
    return Hardware(kind="cpu", has_byte_products=has_byte_products())


def _needs(kind: str, capability: tuple[int, int] = (0, 0)) -> Callable[[Hardware], bool]:
    return lambda hardware: hardware.kind == kind and hardware.capability >= capability


_NEEDS: dict[Method, tuple[str, Callable[[Hardware], bool]]] = {
    INT8_WEIGHTS: ("nothing", lambda _: True),
    INT8_BOTH: ("nothing", lambda _: True),
    INT4_WEIGHTS: (
        "a CPU with AVX512-VNNI and AVX512-BF16, or a GPU with the package mslk",
        lambda hardware: hardware.has_byte_products or (hardware.kind == "cuda" and hardware.has_int4_kernels),
    ),
    INT4_BOTH: ("a CPU with AVX512-VNNI and AVX512-BF16", lambda hardware: hardware.has_byte_products),
    FP8_WEIGHTS: (
        "a CPU, or a GPU of compute capability 8.9 (Ada, Hopper)",
        lambda hardware: hardware.kind == "cpu" or hardware.capability >= (8, 9),
    ),
    FP8_BOTH: ("a GPU of compute capability 8.9 (Ada, Hopper)", _needs("cuda", (8, 9))),
    FP8_CACHE: ("nothing", lambda _: True),
    INT8_CACHE: ("nothing", lambda _: True),
    NVFP4_BOTH: ("a GPU of compute capability 10.0 (Blackwell)", _needs("cuda", (10, 0))),
}


def runs(method: Method, hardware: Hardware) -> bool:
    """Whether the hardware has what the method needs."""
    return method in _NEEDS and _NEEDS[method][1](hardware)


def check_hardware(policy: QuantizationPolicy, declared: Collection[Method], hardware: Hardware, *, place: str) -> None:
    """Refuses what the hardware lacks.

    Raises:
        ConfigError: Says what the method needs, and names the nearest that works here.
    """
    for method in policy.methods():
        if not runs(method, hardware):
            available = [other for other in declared if runs(other, hardware)]
            need = _NEEDS[method][0] if method in _NEEDS else "what no hardware here has"
            raise ConfigError(f"{place}: {method} needs {need}; this is {hardware}. {advice(method, available)}")
