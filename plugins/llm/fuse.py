"""Makes a stock decoder cheaper without changing what it computes: fused layers, merged projections, one-call norms,
packed weights.

The passes know attribute names, not model classes, and leave alone what they do not recognise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from sixfold.core.runtime.linear import is_stock_linear, pack_linears
from sixfold.core.runtime.quantized_linear import QuantizedLinear
from sixfold.core.runtime.rms_norms import replace_rms_norms
from sixfold.core.runtime.step_linear import StepLinear
from sixfold.plugins.llm.fused_layer import NO_SCHEMES, FusedLayer, Schemes, fuse_layers
from sixfold.plugins.llm.lora_adapter import ModuleShape
from sixfold.plugins.llm.lora_linears import add_sites
from sixfold.plugins.llm.lora_sites import AdapterRouter

_MERGED_NAMES: tuple[tuple[str, ...], ...] = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class _Merged:
    """The one product behind several projections of one input, and its result until the last of them has been read."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.input: Tensor | None = None
        self.parts: tuple[Tensor, ...] = ()


class MergedPart(nn.Module):
    """Stands where one of the merged projections stood. The first computes all, the others read their share.

    A part that is called with another input than the first computes for itself: slower, never wrong.

    Args:
        merged: Shared by the parts.
        linear: The merged layer; owned by the first part, which lends it to the others.
        place: Index of this part.
        first: The first part; None if this is it.
    """

    linear: nn.Module

    def __init__(self, merged: _Merged, place: int, *, linear: nn.Module | None, first: MergedPart | None) -> None:
        super().__init__()
        self._merged = merged
        self._place = place
        self._first = (first,)  # in a tuple, so that torch does not register the layer twice
        if linear is not None:
            self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., this part's out]."""
        merged = self._merged
        if self._place == 0 or merged.input is not x:
            owner = self._first[0] or self
            merged.parts = torch.split(owner.linear(x), list(merged.sizes), dim=-1)
            merged.input = x
        part = merged.parts[self._place]
        if self._place == len(merged.sizes) - 1:
            merged.input, merged.parts = None, ()
        return part


def merge_projections(model: nn.Module, schemes: Schemes = NO_SCHEMES) -> int:
    """Replaces query, key and value (and gate and up) projections by parts of one layer; returns how many groups.

    Args:
        model: Changed.
        schemes: Layers that will be quantized: only those merge that are kept in the same way, and they are then.
    """
    num_groups = 0
    for module in list(model.modules()):
        for names in _MERGED_NAMES:
            linears = [getattr(module, name, None) for name in names]
            if _mergeable(linears, schemes):
                _merge(module, names, [linear for linear in linears if isinstance(linear, nn.Linear)], schemes)
                num_groups += 1
    return num_groups


def _mergeable(layers: Sequence[object], schemes: Schemes) -> bool:
    linears = [layer for layer in layers if is_stock_linear(layer)]
    if len(linears) != len(layers):
        return False
    kinds = {
        (linear.in_features, _bias(linear) is None, linear.weight.dtype, linear.weight.device, schemes.get(linear))
        for linear in linears
    }
    return len(kinds) == 1


def _bias(linear: nn.Linear) -> Tensor | None:
    return cast("Tensor | None", linear.bias)  # torch declares it as always there


def _merge(module: nn.Module, names: tuple[str, ...], linears: list[nn.Linear], schemes: Schemes) -> None:
    first = linears[0]
    sizes = tuple(linear.out_features for linear in linears)
    scheme = schemes.get(first)
    if scheme is not None:
        _place(module, names, sizes, QuantizedLinear.from_linears(linears, scheme))
        return
    merged_linear = nn.Linear(
        first.in_features, sum(sizes), bias=False, dtype=first.weight.dtype, device=torch.device("meta")
    )
    merged_linear.weight = nn.Parameter(torch.cat([linear.weight.detach() for linear in linears]), requires_grad=False)
    biases = [bias.detach() for bias in map(_bias, linears) if bias is not None]
    if biases:
        merged_linear.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    _place(module, names, sizes, merged_linear)


def _place(module: nn.Module, names: tuple[str, ...], sizes: tuple[int, ...], linear: nn.Module) -> None:
    merged = _Merged(sizes)
    owner = MergedPart(merged, 0, linear=linear, first=None)
    setattr(module, names[0], owner)
    for place, name in enumerate(names[1:], start=1):
        setattr(module, name, MergedPart(merged, place, linear=None, first=owner))


def quantize_linears(model: nn.Module, schemes: Schemes) -> None:
    """Replaces the layers that are still there of those that are to be quantized."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            scheme = schemes.get(child)
            if scheme is not None and isinstance(child, nn.Linear):
                setattr(parent, name, QuantizedLinear.from_linears([child], scheme))


def optimize(model: nn.Module, decoder: nn.Module, *, fuse: bool, schemes: Schemes = NO_SCHEMES) -> None:
    """Applies all passes in place; the model can only infer afterwards.

    Args:
        model: Changed where it is stepped: in its decoder and output head. A vision tower has many rows at once, for which
            stock layers are made.
        decoder: The part of the model that is stepped; the model itself where there is no other.
        fuse: Whether whole layers may be replaced, too.
        schemes: Layers that are quantized.
    """
    if fuse:
        fuse_layers(decoder, schemes)
    merge_projections(decoder, schemes)
    replace_rms_norms(decoder)
    quantize_linears(model, schemes)
    pack_linears(model, kind=StepLinear, skip=_linears_outside(model, decoder))


def _linears_outside(model: nn.Module, decoder: nn.Module) -> list[str]:
    """Full names of the linear layers that are neither in the decoder nor at the top, where the output head is."""
    inside = set(decoder.modules())
    modules = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())  # untyped in torch
    return [name for name, module in modules if type(module) is nn.Linear and "." in name and module not in inside]


def adapt(model: nn.Module, shapes: Mapping[str, ModuleShape], device: torch.device) -> AdapterRouter:
    """Lets adapters act behind the linear layers of a decoder, optimized or not.

    Args:
        model: Changed in place.
        shapes: Of its linear layers before it was optimized; see `lora_linears.linear_shapes`.
        device: Of the model.
    """
    router = AdapterRouter(device)
    modules = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())  # untyped in torch
    for name, module in list(modules):
        if isinstance(module, FusedLayer):
            module.adapt(name, router, shapes)
    add_sites(model, router, shapes)
    return router
