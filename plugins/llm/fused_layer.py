"""A whole decoder layer from nine calls instead of about forty, for layers built like Llama's, in bfloat16 on a CPU.

What counts at small batches is the number of calls: 30 layers of 40 operators cost 10 ms of dispatch alone. The layer is
recognised by its parts, not by its class; that it computes the same is proved when the model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import activations

from sixfold.core.runtime.kernels import can_run, rms_norm
from sixfold.core.runtime.linear import is_stock_linear
from sixfold.core.runtime.quantized_linear import ByteScheme, QuantizedLinear
from sixfold.core.runtime.rms_norms import plain_rms_norm
from sixfold.core.runtime.step_linear import StepGatedLinear, StepLinear
from sixfold.plugins.llm import byte_kernels
from sixfold.plugins.llm.attention import PagedStep
from sixfold.plugins.llm.batch_layout import PrefillChunk
from sixfold.plugins.llm.kernels import NO_NORM, attend, max_prefill_context, rotate_and_store
from sixfold.plugins.llm.kv_layer import ByteLayer, KvLayer
from sixfold.plugins.llm.lora_adapter import ModuleShape
from sixfold.plugins.llm.lora_sites import AdapterRouter, AdapterSite, Join, stack_layers
from sixfold.plugins.llm.prefill_attention import prefill_mask

_PARTS: frozenset[str] = frozenset(
    "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj mlp.up_proj mlp.down_proj "
    "input_layernorm post_attention_layernorm".split()
)
_HEAD_NORMS: frozenset[str] = frozenset(("self_attn.q_norm", "self_attn.k_norm"))

Schemes = Mapping[nn.Module, ByteScheme]
"""How those stock linear layers are kept that are quantized by this project's kernels."""
NO_SCHEMES: Schemes = MappingProxyType({})

# Scores of more than this are left to torch's fused kernel, which needs no memory for them.
_MAX_SCORES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSites:
    """Where adapters act in one layer: behind each of its four products."""

    qkv: AdapterSite
    joined: AdapterSite
    gated: AdapterSite
    down: AdapterSite


class FusedLayer(nn.Module):
    """One decoder layer on a flat batch; inference only.

    Args:
        layer: The stock layer, for which `can_fuse` said yes. It is not kept.
        schemes: How those of its linear layers are kept that are quantized.
    """

    def __init__(self, layer: nn.Module, schemes: Schemes = NO_SCHEMES) -> None:
        super().__init__()
        stock: Any = layer
        attention, mlp = stock.self_attn, stock.mlp
        self._layer_idx: int = attention.layer_idx
        self._head_dim: int = attention.head_dim
        self._scaling: float = attention.scaling
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv = _linear(projections, schemes)
        self.joined = _linear((attention.o_proj,), schemes)
        self.gated: Any = _gated(mlp.gate_proj, mlp.up_proj, schemes)  # either kind; adapters ask only the stepped one
        self.down = _linear((mlp.down_proj,), schemes)
        self._attended_dim: int = attention.o_proj.in_features
        self._first_norm, self._eps = _norm(stock.input_layernorm)
        self._second_norm, self._second_eps = _norm(stock.post_attention_layernorm)
        self._head_norms: tuple[Any, Any] = (NO_NORM, NO_NORM)
        self._head_eps = 0.0
        if hasattr(attention, "q_norm"):
            (query, self._head_eps), (key, _) = _norm(attention.q_norm), _norm(attention.k_norm)
            self._head_norms = (query.numpy(), key.numpy())
        self._sites: LayerSites | None = None

    def adapt(self, name: str, router: AdapterRouter, shapes: Mapping[str, ModuleShape]) -> None:
        """Lets adapters act in this layer.

        Args:
            name: The layer's name in the stock model.
            router: Knows the step's adapters.
            shapes: Of the stock model's linear layers, by name.
        """

        def site(*parts: str, join: Join = stack_layers) -> AdapterSite:
            names = [f"{name}.{part}" for part in parts]
            return router.add_site(names, [shapes[name] for name in names], join)

        self._sites = LayerSites(
            qkv=site("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            joined=site("self_attn.o_proj"),
            gated=site("mlp.gate_proj", "mlp.up_proj", join=lambda parts: self.gated.join(*parts)),
            down=site("mlp.down_proj"),
        )

    def forward(
        self,
        hidden_states: Tensor,
        *_unused: object,
        position_embeddings: tuple[Tensor, Tensor],
        paged_step: PagedStep,
        **_also_unused: object,
    ) -> Tensor:
        """[1, tokens, dim] to the same; masks and caches that the stock layer would take are all None here."""
        x = hidden_states[0]
        if self._sites is not None and self._sites.qkv.is_active:
            return self._forward_adapted(x, self._sites, position_embeddings, paged_step)[None]
        qkv = self.qkv(rms_norm(x, self._first_norm, self._eps))
        x = self.joined(self._attend(qkv, position_embeddings, paged_step), x)
        inner = rms_norm(x, self._second_norm, self._second_eps)
        result: Tensor = self.down(self.gated(inner), x)
        return result[None]

    def _forward_adapted(
        self, x: Tensor, sites: LayerSites, position_embeddings: tuple[Tensor, Tensor], paged_step: PagedStep
    ) -> Tensor:
        """`forward` in a step with adapters, of the rows alone."""
        normed = rms_norm(x, self._first_norm, self._eps)
        attended = self._attend(sites.qkv.add(normed, self.qkv(normed)), position_embeddings, paged_step)
        x = sites.joined.add(attended, self.joined(attended, x))
        inner = rms_norm(x, self._second_norm, self._second_eps)
        opened = self.gated(inner, sites.gated.delta(inner))
        return sites.down.add(opened, self.down(opened, x))

    def _attend(self, qkv: Tensor, angles: tuple[Tensor, Tensor], step: PagedStep) -> Tensor:
        layout, cache = step.layout, step.caches[self._layer_idx]
        rotation = (angles[0][0], angles[1][0]), self._head_norms, self._head_eps
        if isinstance(cache, ByteLayer):
            byte_kernels.rotate_and_store(qkv, cache, layout, *rotation)
        else:
            rotate_and_store(qkv, cache.tensor, layout, *rotation)
        result = qkv.new_empty(len(qkv), self._attended_dim)
        by_kernel = 0 if isinstance(cache, ByteLayer) else max_prefill_context(cache.tensor)
        rows = layout.rows_up_to(by_kernel)
        if len(rows.rows) and isinstance(cache, ByteLayer):
            byte_kernels.attend(qkv, cache, rows, self._scaling, result)
        elif len(rows.rows):
            attend(qkv, cache.tensor, rows, self._scaling, result)
        for chunk in layout.prefills:
            if chunk.num_context > by_kernel:
                self._prefill(qkv, cache, step, chunk, result)
        return result

    def _prefill(self, qkv: Tensor, cache: KvLayer, step: PagedStep, chunk: PrefillChunk, result: Tensor) -> None:
        num_kv_heads, dim = cache.num_kv_heads, self._head_dim
        heads = qkv[chunk.start : chunk.end].view(chunk.end - chunk.start, -1, dim).transpose(0, 1)
        num_heads = len(heads) - 2 * num_kv_heads
        query, key, value = heads[:num_heads], heads[num_heads:-num_kv_heads], heads[-num_kv_heads:]
        if chunk.block_ids is not None:
            context = cache.gather(step.layout, chunk, chunk.block_ids, qkv.dtype)
            key, value = context[:, :, : chunk.num_context]
        mask = prefill_mask(step.layout, chunk, qkv.device, None)
        attended = _attend_chunk(query, key, value, mask, self._scaling)
        result[chunk.start : chunk.end].view(-1, len(query), dim).copy_(attended.transpose(0, 1))


def _attend_chunk(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Causal attention of one chunk in float32: two products where their scores are few, as they are the faster way.

    In bfloat16 the scores alone cost more accuracy than all else of the layer: SmolLM2-135M's logits were 3.0% away from
    those in float32, against 1.2% so, and the products in float32 are as fast at these sizes.

    Args:
        query: [heads, tokens, dim].
        key: [kv heads, context, dim].
        value: Likewise.
        mask: [tokens, context], True where a token may look; None for the plain causal one.
        scaling: Of the scores.

    Returns:
        [heads, tokens, dim], float32.
    """
    num_heads, num_tokens, dim = query.shape
    num_kv_heads, num_context = key.shape[:2]
    query, key, value = query.float(), key.float(), value.float()
    if num_tokens * num_context > _MAX_SCORES:
        gqa = num_heads != num_kv_heads
        attended: Tensor = F.scaled_dot_product_attention(
            query[None],
            key[None],
            value[None],
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=gqa,
        )
        return attended[0]
    visible = torch.ones(num_tokens, num_context, dtype=torch.bool).tril_() if mask is None else mask
    hidden = torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)
    # Query heads that share a kv head become further queries of it: nothing is repeated.
    queries = query.reshape(num_kv_heads, -1, dim)
    shared = hidden.repeat(num_heads // num_kv_heads, 1).expand(num_kv_heads, -1, -1)
    scores = torch.baddbmm(shared, queries, key.transpose(1, 2), alpha=scaling)
    return torch.bmm(torch.softmax(scores, dim=-1), value).view(num_heads, num_tokens, dim)


def _linear(linears: Sequence[nn.Linear], schemes: Schemes) -> nn.Module:
    """One layer of several that share their input."""
    scheme = schemes.get(linears[0])
    if scheme is not None:
        return QuantizedLinear.from_linears(linears, scheme)
    biases = [cast("Tensor | None", linear.bias) for linear in linears]  # torch's stub forgets bias=False
    bias = None if biases[0] is None else torch.cat([bias for bias in biases if bias is not None])
    return StepLinear(torch.cat([linear.weight for linear in linears]), bias)


def _gated(gate: nn.Linear, up: nn.Linear, schemes: Schemes) -> nn.Module:
    scheme = schemes.get(up)
    if scheme is None:
        return StepGatedLinear(gate, up)
    return QuantizedLinear(up.weight, None, scheme, gate=gate.weight)


def fuse_layers(model: nn.Module, schemes: Schemes = NO_SCHEMES) -> int:
    """Replaces all layers that can be fused; returns their number. Each stock layer is let go before the next."""
    count = 0
    for modules in [m for m in model.modules() if isinstance(m, nn.ModuleList)]:
        for index, layer in enumerate(modules):
            if can_fuse(layer, schemes):
                modules[index] = FusedLayer(layer, schemes)
                count += 1
    return count


def can_fuse(layer: nn.Module, schemes: Schemes = NO_SCHEMES) -> bool:
    """Whether the layer has exactly the parts of a Llama layer (with Qwen3's head norms or without) that run here."""
    stock: Any = layer
    modules = cast("Iterator[tuple[str, nn.Module]]", layer.named_modules())  # untyped in torch
    leaves = (name for name, module in modules if not any(True for _ in module.children()))
    parts = frozenset(name for name in leaves if name != "mlp.act_fn")
    if parts != _PARTS and parts != _PARTS | _HEAD_NORMS:
        return False
    attention, mlp = stock.self_attn, stock.mlp
    linears = [layer.get_submodule(name) for name in _PARTS if name.endswith("proj")]
    plain = all(is_stock_linear(linear) for linear in linears)
    if not plain or not can_run(mlp.up_proj.weight.device, mlp.up_proj.weight.dtype):
        return False
    norms = [stock.input_layernorm, stock.post_attention_layernorm]
    norms += [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
    same_biases = (
        len({attention.q_proj.bias is None, attention.k_proj.bias is None, attention.v_proj.bias is None}) == 1
    )
    merged = (("q_proj", "k_proj", "v_proj"), attention), (("gate_proj", "up_proj"), mlp)
    same_schemes = all(len({schemes.get(getattr(parent, name)) for name in names}) == 1 for names, parent in merged)
    return (
        same_schemes
        and isinstance(mlp.act_fn, nn.SiLU | activations.SiLUActivation)
        and _window(attention) is None
        and attention.head_dim % 2 == 0
        and same_biases
        and all(plain_rms_norm(norm) is not None for norm in norms)
    )


def _window(attention: Any) -> int | None:
    """How far a layer looks back; where layers do not differ, their config says it."""
    own: int | None = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    return own


def _norm(module: nn.Module) -> tuple[Tensor, float]:
    found = plain_rms_norm(module)
    assert found is not None, "can_fuse has asked"
    return found
