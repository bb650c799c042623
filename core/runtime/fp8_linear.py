"""A linear layer in fp8 on GPUs that multiply it: weights scaled by output channel, inputs by row as they come.

Needs no library beside torch. Halves what weights hold and move, and doubles the rate of the matrix units; what is lost is
three bits of mantissa, which a scale for each row and channel keeps near rounding. Compiled, the scaling of the inputs
becomes one pass; eager it is four.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

_TYPE = torch.float8_e4m3fn
_LARGEST = torch.finfo(_TYPE).max
_MULTIPLE = 16  # of both sizes, for the matrix units
_LEAST_SCALE = 1e-12  # a row of zeros


class Fp8Linear(nn.Module):
    """Stands for a stock linear layer in inference.

    Args:
        weight: [out, in], any float type.
        bias: [out] or None.

    Raises:
        ValueError: The sizes are no multiples of 16.
    """

    weight: Tensor
    rounded: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        if any(size % _MULTIPLE for size in weight.shape):
            raise ValueError(f"fp8 needs sizes that are multiples of {_MULTIPLE}, not {tuple(weight.shape)}")
        self.out_features, self.in_features = weight.shape
        values, scale = quantize_rows(weight)
        # Libraries cast what they give a layer to the type of its weight: bare fp8 would take inputs without a scale.
        # This one has the type and device alone, and no numbers.
        self.register_buffer("weight", weight.new_empty(0, self.in_features), persistent=False)
        self.register_buffer("rounded", values)
        self.register_buffer("weight_scale", scale.T.contiguous())  # [1, out]
        self.register_buffer("bias", bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] to [..., out], in the type of the inputs."""
        values, scale = quantize_rows(inputs.reshape(-1, self.in_features))
        multiply: Any = torch._scaled_mm  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]  # no public name
        product: Tensor = multiply(
            values,
            self.rounded.T,
            scale_a=scale,
            scale_b=self.weight_scale,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        output = product.to(inputs.dtype).reshape(*inputs.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias

    def extra_repr(self) -> str:
        """Shown in the module's repr."""
        return f"in_features={self.in_features}, out_features={self.out_features}, fp8"


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Values in fp8 and a float32 scale for each row, [rows, 1]: their product is the input but for rounding."""
    scale = (rows.abs().amax(dim=-1, keepdim=True).float() / _LARGEST).clamp(min=_LEAST_SCALE)
    return (rows / scale).clamp(-_LARGEST, _LARGEST).to(_TYPE), scale


def can_hold(linear: nn.Linear) -> bool:
    """Whether the layer's sizes fit."""
    return linear.out_features % _MULTIPLE == 0 and linear.in_features % _MULTIPLE == 0


def from_linear(linear: nn.Linear) -> Fp8Linear:
    """The same layer in fp8."""
    bias = cast("Tensor | None", linear.bias)
    return Fp8Linear(linear.weight.detach(), None if bias is None else bias.detach())
