"""Rebuilds BERT-like layers from fewer kernels: one product for queries, keys and values, activation and residual adds
inside the products."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import activations

from sixfold.core.runtime.linear import Activation, PackedLinear, is_stock_linear
from sixfold.plugins.embedding.attention import PackedAttention

_LINEARS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")

_ACTIVATIONS: tuple[tuple[type[nn.Module], Activation], ...] = (
    (activations.GELUActivation, "gelu"),
    (activations.GELUTanh, "gelu_tanh"),
    (activations.NewGELUActivation, "gelu_tanh"),
    (nn.ReLU, "relu"),
    (nn.SiLU, "silu"),
)


class FusedLayer(nn.Module):
    """A post-norm encoder layer (BERT, RoBERTa, XLM-R, ELECTRA, CamemBERT...) on a flat batch; inference only.

    Args:
        layer: The stock layer, for which `can_fuse` said yes. It is not kept.
        attention: The model's attention over the batch that it is running.
    """

    def __init__(self, layer: nn.Module, attention: PackedAttention) -> None:
        super().__init__()
        query, key, value, joined, inner, outer = (_linear(layer, name) for name in _LINEARS)
        weight = torch.cat([linear.weight for linear in (query, key, value)])
        bias = torch.cat([linear.bias for linear in (query, key, value)])
        activation = activation_of(layer)
        assert activation is not None
        self._attention = attention
        self._num_heads = cast("int", _find(layer, "attention.self").num_attention_heads)
        self._scaling = (query.out_features // self._num_heads) ** -0.5
        self.qkv = PackedLinear(weight, bias)
        self.joined = PackedLinear.from_linear(joined)
        self.inner = PackedLinear.from_linear(inner, activation=activation)
        self.outer = PackedLinear.from_linear(outer)
        self.first_norm, self.second_norm = (cast("nn.LayerNorm", _find(layer, name)) for name in _NORMS)

    def forward(self, hidden_states: Tensor, *_unused: object, **_also_unused: object) -> Tensor:
        """[1, total_tokens, dim] to the same; masks and caches that the stock layer would take are all None here."""
        x = hidden_states[0]
        attended = self._attention.attend_fused(self.qkv(x), self._num_heads, self._scaling)
        x = _norm(self.first_norm, self.joined(attended, x))
        x = _norm(self.second_norm, self.outer(self.inner(x), x))
        return x[None]


def fuse_layers(model: nn.Module, attention: PackedAttention) -> int:
    """Replaces all layers that can be fused; returns their number. Each stock layer is let go before the next."""
    count = 0
    for modules in [m for m in model.modules() if isinstance(m, nn.ModuleList)]:
        for index, layer in enumerate(modules):
            if can_fuse(layer):
                modules[index] = FusedLayer(layer, attention)
                count += 1
    return count


def can_fuse(layer: nn.Module) -> bool:
    """Whether the layer has exactly the parts of a BERT layer, by structure and not by name of its class."""
    parts = {name for name, _ in _leaves(layer)}
    expected = {*_LINEARS, *_NORMS}
    if parts != expected or activation_of(layer) is None:
        return False
    linears = [_find(layer, name) for name in _LINEARS]
    if not all(is_stock_linear(linear) and cast("Tensor | None", linear.bias) is not None for linear in linears):
        return False
    attention = _find(layer, "attention.self")
    return not getattr(attention, "is_causal", False) and not getattr(attention, "is_decoder", False)


def _leaves(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    modules = cast("Iterator[tuple[str, nn.Module]]", layer.named_modules())
    for name, module in modules:
        inert = isinstance(module, nn.Dropout) or name.endswith("intermediate_act_fn")
        if not inert and not any(True for _ in module.children()):
            yield name, module


def _find(layer: nn.Module, name: str) -> Any:
    return layer.get_submodule(name)


def _linear(layer: nn.Module, name: str) -> nn.Linear:
    return cast("nn.Linear", layer.get_submodule(name))


def activation_of(layer: nn.Module) -> Activation | None:
    """What is applied between the two products behind attention, if it can be fused."""
    function = getattr(getattr(layer, "intermediate", None), "intermediate_act_fn", None)
    for kind, name in _ACTIVATIONS:
        if isinstance(function, kind):
            return name
    return None


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
