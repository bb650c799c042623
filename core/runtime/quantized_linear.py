"""A linear layer whose weight has 8 or 4 bits, on CPUs that run `quantized_matmul`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from sixfold.core.runtime.bf16_matmul import side_by_side
from sixfold.core.runtime.epilogue import After
from sixfold.core.runtime.quantized_matmul import Bits, QuantizedWeight, has_byte_products


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteScheme:
    """How a layer is kept.

    Attributes:
        num_bits: Of each weight; groups of 32 share a scale, with 4 bits an offset, too.
        keeps_inputs: False rounds the inputs to 8 bits in groups of 32.
    """

    num_bits: Bits
    keeps_inputs: bool


def can_quantize(linear: nn.Linear) -> bool:
    """Whether the layer fits the kernels."""
    weight = linear.weight
    plain = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
    return plain and weight.shape[1] % 2 == 0 and weight.numel() > 0 and has_byte_products()


class QuantizedLinear(nn.Module):
    """``x @ weight.T + bias``, plus what is added to it; for inference only.

    Products are bfloat16's: float32 inputs are rounded, and results are given in the type of the inputs.

    Args:
        weight: [out_features, in_features].
        bias: [out_features], or None.
        scheme: How the weight is kept.
        gate: As ``weight``: then the result is ``silu(x @ gate.T) * (x @ weight.T)``, without bias and residual.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, scheme: ByteScheme, *, gate: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self.scheme = scheme
        self._gated = gate is not None
        # Libraries look at a layer's weight for its type and device; this one tells them, and is wrong for all else.
        self.register_buffer("weight", torch.empty(0, self.in_features, dtype=weight.dtype), persistent=False)
        self._panels = QuantizedWeight(
            weight, bias, num_bits=scheme.num_bits, keeps_inputs=scheme.keeps_inputs, gate=gate
        )
        panels: Tensor = cast("Any", torch).from_numpy(self._panels.panels)  # typed in part
        self.register_buffer("panels", panels, persistent=False)  # so that it is counted

    @classmethod
    def from_linears(cls, linears: Sequence[nn.Linear], scheme: ByteScheme) -> QuantizedLinear:
        """One layer of several that share their input, their results side by side; all or none have a bias."""
        weights: list[Tensor] = [linear.weight for linear in linears]
        biases = [cast("Tensor | None", linear.bias) for linear in linears]  # torch's stub forgets bias=False
        bias = None if biases[0] is None else torch.cat([bias for bias in biases if bias is not None])
        return cls(torch.cat(weights) if len(weights) > 1 else weights[0], bias, scheme)

    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        """Two of [out_features, dim] as one: products with it are what `forward` of a gated layer takes as ``added``."""
        return side_by_side(gate, up)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """[..., in_features] to [..., out_features].

        Args:
            x: bfloat16 or float32.
            added: Before the result is rounded: [..., out_features], a residual; with a gate to both products before it, as
                wide as the rows of `join`. Never changed.
        """
        if self._gated:
            after = After.GATE if added is None else After.ADD_GATE
        else:
            after = After.NOTHING if added is None else After.ADD
        if x.dtype is torch.bfloat16:
            return self._panels.multiply(x, after=after, other=added)
        if added is not None and not self._gated:  # which is not rounded then
            return self._panels.multiply(x.bfloat16()).to(x.dtype) + added
        other = None if added is None else added.bfloat16()
        return self._panels.multiply(x.bfloat16(), after=after, other=other).to(x.dtype)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.in_features}, {self.out_features}, {self.scheme}, gated={self._gated}"
