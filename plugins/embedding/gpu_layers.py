"""Whole transformer layers for GPUs, on a flat batch: one product for queries, keys and values, one kernel between products.

A layer is recognised by its parts, not by its class; that it computes the same is proved when the model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import activations

from sixfold.core.runtime.gpu_layers import HeadNorms, add_layer_norm, rms_norm, rotate_heads, silu_gate
from sixfold.core.runtime.linear import ACTIVATIONS, is_stock_linear
from sixfold.core.runtime.rms_norms import plain_rms_norm
from sixfold.plugins.embedding import fused
from sixfold.plugins.embedding.attention import PackedAttention

_DECODER_PARTS = frozenset(
    "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj mlp.up_proj mlp.down_proj "
    "input_layernorm post_attention_layernorm".split()
)
_HEAD_NORMS = frozenset(("self_attn.q_norm", "self_attn.k_norm"))


class GpuEncoderLayer(nn.Module):
    """A post-norm encoder layer (BERT, RoBERTa, XLM-R...) on a flat batch; inference only.

    Args:
        layer: The stock layer, for which `fused.can_fuse` said yes. It is not kept.
        attention: The model's attention over the batch that it is running.
    """

    def __init__(self, layer: nn.Module, attention: PackedAttention) -> None:
        super().__init__()
        stock: Any = layer
        own = stock.attention.self
        self._attention = attention
        self._num_heads: int = own.num_attention_heads
        self._scaling = (own.query.out_features // self._num_heads) ** -0.5
        self.qkv = _merged((own.query, own.key, own.value))
        self.joined: nn.Linear = stock.attention.output.dense
        self.inner: nn.Linear = stock.intermediate.dense
        self.outer: nn.Linear = stock.output.dense
        self.first_norm: nn.LayerNorm = stock.attention.output.LayerNorm
        self.second_norm: nn.LayerNorm = stock.output.LayerNorm
        activation = fused.activation_of(layer)
        assert activation is not None, "can_fuse has asked"
        self._activation = ACTIVATIONS[activation][2]

    def forward(self, hidden_states: Tensor, *_unused: object, **_also_unused: object) -> Tensor:
        """[1, rows, dim] to the same; masks and caches that the stock layer would take are all None here."""
        x = hidden_states[0]
        query, key, value = self.qkv(x).view(len(x), 3 * self._num_heads, -1).chunk(3, dim=1)
        attended = self._attention.attend_flat(query, key, value, scaling=self._scaling)
        x = _add_norm(self.first_norm, self.joined(attended.view(len(x), -1)), x)
        x = _add_norm(self.second_norm, self.outer(self._activation(self.inner(x))), x)
        return x[None]


class GpuDecoderLayer(nn.Module):
    """A layer built like Llama's (with Qwen3's head norms or without) on a flat batch; inference only.

    Args:
        layer: The stock layer, for which `can_fuse_decoder` said yes. It is not kept.
        attention: As above.
    """

    def __init__(self, layer: nn.Module, attention: PackedAttention) -> None:
        super().__init__()
        stock: Any = layer
        own, mlp = stock.self_attn, stock.mlp
        self._attention = attention
        self._head_dim: int = own.head_dim
        self._scaling: float = own.scaling
        self._causal = bool(getattr(own, "is_causal", True))
        self._window: int | None = getattr(own, "sliding_window", None)
        self._num_heads: int = own.q_proj.out_features // self._head_dim
        self._num_kv_heads: int = own.k_proj.out_features // self._head_dim
        self.qkv = _merged((own.q_proj, own.k_proj, own.v_proj))
        self.joined: nn.Linear = own.o_proj
        self.gated = _merged((mlp.gate_proj, mlp.up_proj), norm=stock.post_attention_layernorm)
        self.down: nn.Linear = mlp.down_proj
        self.first_norm: nn.Module = stock.input_layernorm
        self._eps = _eps(self.first_norm), _eps(stock.post_attention_layernorm)
        self._norms: HeadNorms | None = None
        if hasattr(own, "q_norm"):
            self._norms = HeadNorms(own.q_norm.weight.detach(), own.k_norm.weight.detach(), _eps(own.q_norm))

    def forward(
        self,
        hidden_states: Tensor,
        *_unused: object,
        position_embeddings: tuple[Tensor, Tensor],
        **_also_unused: object,
    ) -> Tensor:
        """[1, rows, dim] to the same, in place: the rows belong to this pass alone."""
        x = hidden_states[0]
        qkv = self.qkv(rms_norm(x, cast("Tensor", self.first_norm.weight), self._eps[0]))
        cos, sin = position_embeddings
        heads, kv_heads = self._num_heads, self._num_kv_heads
        rotate_heads(qkv, cos[0], sin[0], num_heads=heads, num_kv_heads=kv_heads, norms=self._norms)
        rows = qkv.view(len(x), -1, self._head_dim)
        query, key, value = torch.split(rows, [heads, kv_heads, kv_heads], dim=1)
        attended = self._attention.attend_flat(
            query, key, value, scaling=self._scaling, causal=self._causal, window=self._window
        )
        _add_product(x, attended.view(len(x), -1), self.joined)
        opened = self.gated(x)  # the norm is in its weights and in the gate
        _add_product(x, silu_gate(opened, x, self._eps[1]), self.down)
        return hidden_states


def fuse_layers(model: nn.Module, attention: PackedAttention) -> int:
    """Replaces all layers that can be fused; returns their number. Each stock layer is let go before the next."""
    count = 0
    for modules in [m for m in model.modules() if isinstance(m, nn.ModuleList)]:
        for index, layer in enumerate(modules):
            if fused.can_fuse(layer):
                modules[index] = GpuEncoderLayer(layer, attention)
            elif can_fuse_decoder(layer):
                modules[index] = GpuDecoderLayer(layer, attention)
            else:
                continue
            count += 1
    return count


def can_fuse_decoder(layer: nn.Module) -> bool:
    """Whether the layer has exactly the parts of a Llama layer, with Qwen3's head norms or without."""
    stock: Any = layer
    modules = cast("Iterator[tuple[str, nn.Module]]", layer.named_modules())  # untyped in torch
    leaves = (name for name, module in modules if not any(True for _ in module.children()))
    parts = frozenset(name for name in leaves if name != "mlp.act_fn")
    if parts != _DECODER_PARTS and parts != _DECODER_PARTS | _HEAD_NORMS:
        return False
    attention, mlp = stock.self_attn, stock.mlp
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    linears = [*projections, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    norms = [stock.input_layernorm, stock.post_attention_layernorm]
    norms += [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
    return (
        all(is_stock_linear(linear) for linear in linears)
        and len({linear.bias is None for linear in projections}) == 1
        and mlp.gate_proj.bias is None
        and mlp.up_proj.bias is None
        and isinstance(mlp.act_fn, nn.SiLU | activations.SiLUActivation)
        and attention.head_dim % 2 == 0
        and all(plain_rms_norm(norm) is not None for norm in norms)
    )


def _merged(linears: Sequence[nn.Linear], *, norm: nn.Module | None = None) -> nn.Linear:
    """One layer of several that share their input; the weights of an RMS norm before it are taken in, its factors are not."""
    biases = [linear.bias for linear in linears if cast("Tensor | None", linear.bias) is not None]
    sizes = sum(linear.out_features for linear in linears)
    merged = nn.Linear(linears[0].in_features, sizes, bias=bool(biases), device=torch.device("meta"))
    weight = torch.cat([linear.weight.detach() for linear in linears])
    if norm is not None:
        weight = (weight.float() * cast("Tensor", norm.weight).detach().float()).to(weight.dtype)
    merged.weight = nn.Parameter(weight, requires_grad=False)
    if biases:
        merged.bias = nn.Parameter(torch.cat([bias.detach() for bias in biases]), requires_grad=False)
    return merged


def _add_product(x: Tensor, inputs: Tensor, linear: nn.Linear) -> None:
    """Adds the linear layer of the inputs to ``x``; the product accumulates into it, so nothing is read twice."""
    x.addmm_(inputs, linear.weight.t())
    if cast("Tensor | None", linear.bias) is not None:
        x.add_(linear.bias)


def _add_norm(norm: nn.LayerNorm, x: Tensor, residual: Tensor) -> Tensor:
    return add_layer_norm(x, residual, norm.weight, norm.bias, norm.eps)


def _eps(norm: nn.Module) -> float:
    found = plain_rms_norm(norm)
    assert found is not None, "can_fuse_decoder has asked"
    return found[1]
