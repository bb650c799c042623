"""What a linear layer takes once it is quantized, told from its shape alone: imports neither torch nor the kernels."""

from __future__ import annotations

from collections.abc import Iterable

from sixfold.core.memory.need import HOST
from sixfold.core.runtime.quantization.plan import Decision
from sixfold.core.runtime.quantization.policy import Scheme

_PANEL = 32
"""Columns and inputs of one block of the processor's kernels; what is less is padded to it."""

_BLOCK_BYTES: dict[Scheme, int] = {"int8": 64 + _PANEL * _PANEL, "int4": 128 + _PANEL * _PANEL // 2}
"""Of numbers, scales and offsets; see `sixfold.core.runtime.byte_dots.block_bytes`, which tests compare with."""

_BITS: dict[Scheme, int] = {"int8": 8, "fp8": 8, "int4": 4, "nvfp4": 4}
_SMALLEST_GROUP = 16
"""Inputs that share a scale in the schemes of 4 bits that torchao has."""


def planned_bytes(decisions: Iterable[Decision], *, itemsize: int, device: str) -> int:
    """What the weights of these layers take.

    Args:
        decisions: What `plan` says of each.
        itemsize: Bytes of a weight that is not quantized.
        device: ``cpu`` or ``cuda:N``: kernels of each have their own layout.
    """
    return sum(_layer_bytes(decision, itemsize, device) for decision in decisions)


def _layer_bytes(decision: Decision, itemsize: int, device: str) -> int:
    layer, method = decision.layer, decision.method
    if method is None:
        return layer.num_weights * itemsize
    if device == HOST and method.scheme in _BLOCK_BYTES:
        return -(-layer.out_features // _PANEL) * -(-layer.in_features // _PANEL) * _BLOCK_BYTES[method.scheme]
    bits = _BITS[method.scheme]
    num_scales = layer.out_features if bits == 8 else layer.num_weights // _SMALLEST_GROUP
    return layer.num_weights * bits // 8 + num_scales * (4 if bits == 8 else 2)
