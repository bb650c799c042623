"""Linear layers whose weights are kept in oneDNN's own blocked layout, because torch re-packs them at every call.

Measured gain over ``F.linear`` (torch 2.13, 2 threads of a Zen 4 with AVX512-BF16, weights 384-1,536 wide; the last
column is a 49,152 x 576 output head). Ratios of one run, best of five:

======  ===========  ============  ==================
rows    float32      bfloat16      head, fp32 / bf16
======  ===========  ============  ==================
1       1.0 - 1.6    2.0 - 2.6     2.2 / 3.4
8       1.4 - 2.0    1.7 - 2.2     3.7 / 2.9
24      1.2 - 1.5    1.3 - 1.8     2.6 / 1.8
128     1.1 - 1.2    1.1 - 1.5     1.8 / 1.2
2048    1.1          1.05 - 1.2    not measured
======  ===========  ============  ==================

A fused gelu costs 5-10% of the product where a separate one costs 20-90%; a fused residual add costs 5%.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["none", "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"]
"""What can be fused behind the product; ``gelu`` is the exact one."""

ACTIVATIONS: Mapping[Activation, tuple[str, str, Callable[[Tensor], Tensor]]] = {
    "none": ("none", "", lambda x: x),
    "relu": ("relu", "", torch.relu),
    "gelu": ("gelu", "none", F.gelu),
    "gelu_tanh": ("gelu", "tanh", lambda x: F.gelu(x, approximate="tanh")),
    "silu": ("swish", "", F.silu),
    "tanh": ("tanh", "", torch.tanh),
    "sigmoid": ("sigmoid", "", torch.sigmoid),
}
"""oneDNN's name and algorithm of each activation, and the same function in torch."""

# The row count that oneDNN chooses the blocking for. The blocked layout serves every row count; a hint of 1 costs a
# third of the speed at 8 rows, while 32 and 2,048 are equal within noise at all measured row counts.
_HINT_ROWS = 32


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights of this device and type get the blocked layout; `PackedLinear` uses ``F.linear`` otherwise."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # ships no types
        return False
    if dtype is torch.float32:
        return True
    return dtype is torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Module):
    """``activation(x @ weight.T + bias)``, ``x @ weight.T + bias + residual`` or ``(x @ weight.T + bias) * factor``,
    for inference only.

    The weight is copied into the blocked layout and not kept otherwise, so it is neither in ``parameters()`` nor in
    ``state_dict()``, and ``to()`` must not be called afterwards. Where `can_pack` says no, the weight stays a parameter
    and the results come from ``F.linear``.

    Args:
        weight: [out_features, in_features]; float32 or bfloat16 to be packed.
        bias: [out_features] of the same type, or None.
        activation: Applied to the product and bias; must be "none" where a residual is added.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, activation: Activation = "none") -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self.activation: Activation = activation
        self._post_op, self._algorithm, self._function = ACTIVATIONS[activation]
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._packed: Tensor | None = None
        self._dense: nn.Parameter | None = None
        self._lay_out(weight, bias)

    def _lay_out(self, weight: Tensor, bias: Tensor | None) -> None:
        """Takes the weight into the layout that products are made from."""
        del bias  # kept as it is
        if can_pack(weight.device, weight.dtype):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _HINT_ROWS)
        else:
            self._dense = nn.Parameter(weight.detach(), requires_grad=False)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, dtype: torch.dtype | None = None, activation: Activation = "none"
    ) -> PackedLinear:
        """Packs a stock layer, converted to ``dtype`` if given; the stock layer itself is left as it is."""
        target = dtype or linear.weight.dtype
        bias = cast("Tensor | None", linear.bias)  # torch's stub forgets bias=False
        return cls(linear.weight.to(target), None if bias is None else bias.to(target), activation=activation)

    def sharing(self, activation: Activation) -> PackedLinear:
        """The same weights with another activation; nothing is copied."""
        other = copy.copy(self)
        other.activation = activation
        other._post_op, other._algorithm, other._function = ACTIVATIONS[activation]
        return other

    @property
    def is_packed(self) -> bool:
        """False where this device or type falls back to ``F.linear``."""
        return self._packed is not None

    @property
    def num_parameters(self) -> int:
        """Weights and biases, packed ones included."""
        return self.out_features * (self.in_features + (self.bias is not None))

    @property
    def num_bytes(self) -> int:
        """Memory of weights and biases, without the layout's padding."""
        return self.num_parameters * self.dtype.itemsize

    def forward(self, x: Tensor, residual: Tensor | None = None, *, factor: Tensor | None = None) -> Tensor:
        """Maps [..., in_features] to [..., out_features]; any leading shape and any number of rows, also none.

        Args:
            x: Of the weight's type; another type is an error of oneDNN or ``F.linear``.
            residual: [..., out_features], added in the same kernel. Never changed.
            factor: [..., out_features], multiplied in the same kernel, instead of a residual. Never changed.
        """
        other, operation = (residual, "add") if factor is None else (factor, "mul")
        self._check_one(residual, factor)
        if self._packed is None:
            assert self._dense is not None
            product = F.linear(x, self._dense, self.bias)
            if other is None:
                return self._function(product)
            return product + other if factor is None else product * other
        if other is None:
            result: Tensor = torch.ops.mkldnn._linear_pointwise(
                x, self._packed, self.bias, self._post_op, [], self._algorithm
            )
        else:
            result = torch.ops.mkldnn._linear_pointwise.binary(x, other, self._packed, self.bias, operation)
        return result

    def _check_one(self, residual: Tensor | None, factor: Tensor | None) -> None:
        num_fused = (self.activation != "none") + (residual is not None) + (factor is not None)
        if num_fused > 1:
            raise ValueError(
                f"PackedLinear can fuse only one of activation ({self.activation}), residual and factor; use 'none'."
            )

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, dtype={self.dtype}, "
            f"activation={self.activation}, packed={self.is_packed}"
        )


def pack_linears(
    module: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    skip: Collection[str] = (),
    kind: type[PackedLinear] = PackedLinear,
) -> int:
    """Replaces every ``nn.Linear`` below ``module`` by a `PackedLinear`; subclasses of ``nn.Linear`` are left alone.

    Each stock layer is let go before the next is packed, so the peak is one layer above the result. A layer that has
    several places stays shared. A weight that another module owns too (an output head tied to a token table) stays
    usable there, and the packed copy comes on top.

    Args:
        module: Changed in place. It must not be an ``nn.Linear`` itself.
        dtype: Converts the linear layers to this type; None keeps each layer's own.
        skip: Layers to leave as they are, by full name (``"decoder.lm_head"``) or last part (``"lm_head"``).
        kind: What replaces them.

    Returns:
        The number of different layers that were replaced.
    """
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    modules = cast("Iterator[tuple[str, nn.Module]]", module.named_modules())  # untyped in torch
    for parent_name, parent in modules:
        for name, child in parent.named_children():
            full_name = f"{parent_name}.{name}" if parent_name else name
            if type(child) is nn.Linear and name not in skip and full_name not in skip:
                places.setdefault(id(child), []).append((parent, name))
    for layer_places in places.values():
        first_parent, first_name = layer_places[0]
        packed = kind.from_linear(getattr(first_parent, first_name), dtype=dtype)
        for parent, name in layer_places:
            setattr(parent, name, packed)
    return len(places)
