"""Linear layers for models that are stepped: few rows meet every weight, again and again.

On a CPU with AVX512-BF16 (and without AMX) their bfloat16 products are those of `bf16_matmul`; everywhere else they are those
of `linear`. There a row's result is the same to the bit whatever rows are beside it: what a request gets does not depend
on who shares its step.

Measured beside oneDNN's (torch 2.13, 2 threads of a Zen 4, median ms of a product; bench/bf16_matmul.py):

=====  ======================  ======================  ====================
rows   3,072 x 576             576 x 1,536             49,152 x 576
=====  ======================  ======================  ====================
1      0.125 instead of 0.156  0.064 instead of 0.079  1.5 instead of 1.9
8      0.118 instead of 0.159  0.067 instead of 0.090  1.4 instead of 2.1
24     0.238 instead of 0.288  0.123 instead of 0.155  3.5 instead of 4.0
256    2.21 instead of 2.16    1.04 instead of 1.05    34.7 instead of 33.5
=====  ======================  ======================  ====================

As much again comes from elsewhere: torch's threads and numba's are two teams, and each change from one to the other costs
tens of microseconds. A decoder layer whose products are numba's, as its attention is, changes nowhere: 34 ms a step of 24
rows instead of 55.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sixfold.core.runtime.bf16_matmul import After, PackedWeight, is_fastest, side_by_side
from sixfold.core.runtime.linear import Activation, PackedLinear

_FUSED_ACTIVATIONS: Mapping[Activation, After] = {"none": After.NOTHING, "silu": After.SILU, "gelu": After.GELU}


def has_panels(weight: Tensor) -> bool:
    """Whether products with this weight run in this project's own kernel."""
    on_cpu = weight.device.type == "cpu" and weight.dtype is torch.bfloat16
    return on_cpu and weight.shape[1] % 2 == 0 and weight.numel() > 0 and is_fastest()


class StepLinear(PackedLinear):
    """A `PackedLinear` for few rows."""

    def _lay_out(self, weight: Tensor, bias: Tensor | None) -> None:
        self._panels: PackedWeight | None = None
        if has_panels(weight):
            self._panels = PackedWeight(weight, bias)
        else:
            super()._lay_out(weight, bias)

    @property
    def is_packed(self) -> bool:
        """False where this device or type falls back to ``F.linear``."""
        return self._panels is not None or super().is_packed

    def forward(self, x: Tensor, residual: Tensor | None = None, *, factor: Tensor | None = None) -> Tensor:
        """See `PackedLinear.forward`."""
        if self._panels is None:
            return super().forward(x, residual, factor=factor)
        if residual is None and factor is None:
            fused = _FUSED_ACTIVATIONS.get(self.activation)
            return self._function(self._panels.multiply(x)) if fused is None else self._panels.multiply(x, after=fused)
        self._check_one(residual, factor)
        after, other = (After.ADD, residual) if factor is None else (After.MULTIPLY, factor)
        return self._panels.multiply(x, after=after, other=other)


class StepGatedLinear(nn.Module):
    """``silu(x @ gate.T) * (x @ up.T)``, the first half of an MLP as Llama has it; inference only.

    Args:
        gate: Without a bias.
        up: As large, without a bias.
    """

    def __init__(self, gate: nn.Linear, up: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = up.weight.shape
        self.dtype = up.weight.dtype
        self._panels: PackedWeight | None = None
        if has_panels(up.weight):
            self._panels = PackedWeight(up.weight, None, gate=gate.weight)
        else:
            self.gate = PackedLinear.from_linear(gate, activation="silu")
            self.up = PackedLinear.from_linear(up)

    @property
    def is_packed(self) -> bool:
        """Whether the weights are here; else two layers below hold them."""
        return self._panels is not None

    @property
    def num_bytes(self) -> int:
        """Memory of both weights, without the layout's padding."""
        return 2 * self.out_features * self.in_features * self.dtype.itemsize

    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        """Two of [out_features, dim] as one, [rows, dim]: products with it are what `forward` takes as ``added``."""
        return torch.cat((gate, up)) if self._panels is None else side_by_side(gate, up)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """[..., in_features] to [..., out_features].

        Args:
            x: Of the weights' type.
            added: Added to both products before the gate; see `join`.
        """
        if self._panels is not None:
            after = After.GATE if added is None else After.ADD_GATE
            return self._panels.multiply(x, after=after, other=added)
        if added is None:
            result: Tensor = self.up(x, factor=self.gate(x))
            return result
        gate, up = torch.split(added, self.out_features, dim=-1)
        opened = F.silu(self.gate.sharing("none")(x) + gate)
        both: Tensor = opened * (self.up(x) + up)
        return both
