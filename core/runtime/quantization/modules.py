"""How a loader quantizes the modules it has read; what does the work is imported only when an entry asks for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping

import torch
from torch import nn

from sixfold.core.errors import ConfigError
from sixfold.core.runtime.quantization.component import Component
from sixfold.core.runtime.quantization.policy import Method, QuantizationPolicy

INSTALL = "Run: pip install 'sixfold[quantization]'"
"""What brings the libraries."""


def quantize_loaded(
    components: Mapping[str, Component], policy: QuantizationPolicy | None, declared: Collection[Method], *, place: str
) -> str:
    """Quantizes all components in place; they can only infer afterwards.

    Args:
        components: By name; all on one device, in evaluation mode.
        policy: What the person wrote; None does nothing.
        declared: What the family offers.
        place: Where the policy stands in the configuration, for messages.

    Returns:
        What was done, in a few words, for `ModelInfo.details`; empty for nothing.

    Raises:
        ConfigError: The policy does not fit the model, the hardware or what is installed.
    """
    if policy is None:
        return ""
    if importlib.util.find_spec("numba") is None:
        raise ConfigError(f"{place}: quantization needs numba, which is not installed. {INSTALL}")
    from sixfold.core.runtime.quantization.apply import quantize_components

    return quantize_components(components, policy, declared, place=place)


def held_bytes(module: nn.Module) -> int:
    """Memory of all parameters and buffers, quantized weights included."""
    return sum(_tensor_bytes(tensor) for tensor in (*module.parameters(), *module.buffers()))


def _tensor_bytes(tensor: torch.Tensor) -> int:
    # torchao's tensors report the size of what they stand for; what they hold is in tensors of their own.
    names = [*getattr(tensor, "tensor_data_names", ()), *(getattr(tensor, "optional_tensor_data_names", None) or ())]
    if not names:
        return tensor.nbytes
    return sum(part.nbytes for name in names if (part := getattr(tensor, name, None)) is not None)
