"""The attention function that transformers' decoders call: writes keys and values into cache blocks and attends to them.

It is registered with transformers under `ATTENTION`; its mask function is left out, which makes transformers build no
mask. The step's layout and the cache travel through the model's ``forward`` as one keyword argument, `PAGED_STEP`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sixfold.plugins.llm.batch_layout import BatchLayout, DecodeGroup
from sixfold.plugins.llm.divided_attention import DividedRows, attend_divided
from sixfold.plugins.llm.kv_layer import KvLayer
from sixfold.plugins.llm.prefill_attention import attend_chunk, capped, prefill_mask

ATTENTION = "sixfold_paged"
"""Name in transformers' table of attention functions."""

PAGED_STEP = "paged_step"
"""Name of the keyword argument of ``forward`` that holds a `PagedStep`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedStep:
    """What the attention function needs beside the layer's own tensors.

    Attributes:
        layout: This step's rows.
        caches: The cache's layers.
        divided: The last rows of the step, which are this rank's of chunks that several compute; the layout has the others.
    """

    layout: BatchLayout
    caches: tuple[KvLayer, ...]
    divided: DividedRows | None = None


class AttentionLayer(Protocol):
    """What is read of transformers' attention modules."""

    layer_idx: int


def paged_attention(
    module: AttentionLayer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    paged_step: PagedStep,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_others: object,
) -> tuple[Tensor, None]:
    """Causal attention of a flat batch over the cache.

    Args:
        module: The layer.
        query: [1, heads, tokens, head dim], rotated.
        key: [1, kv heads, tokens, head dim], rotated.
        value: As ``key``.
        attention_mask: Always None.
        scaling: Factor on the scores; 1/sqrt(head dim) if None.
        paged_step: See `PAGED_STEP`.
        sliding_window: Tokens, its own included, that a token sees; None for all.
        softcap: What scores approach and never exceed; None leaves them as they are.
        _others: What `probe` has found to have no influence.

    Returns:
        ([1, tokens, heads, head dim], None), as transformers wants it.
    """
    layout, divided = paged_step.layout, paged_step.divided
    cache = paged_step.caches[module.layer_idx]
    if divided is None:
        stored = _store(layout, cache, key[0], value[0])
        return _attend(layout, cache, query, stored, scaling, sliding_window, softcap), None
    own = query.shape[2] - sum(divided.lengths)
    stored = _store(layout, cache, key[0, :, :own], value[0, :, :own])
    # Between the two: its chunks may begin with blocks that these rows fill, and these rows see what its chunks fill.
    shared = attend_divided(
        divided,
        query[:, :, own:],
        key[:, :, own:],
        value[:, :, own:],
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        cache=cache,
    )
    alone = _attend(layout, cache, query[:, :, :own], stored, scaling, sliding_window, softcap)
    return torch.cat((alone, shared.transpose(1, 2)), dim=1), None


def _store(layout: BatchLayout, cache: KvLayer, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Writes the rows' keys and values, [kv heads, tokens, head dim]; returns them as the cache gives them back."""
    if layout.tiles is None:
        return cache.store(layout, key, value)
    from sixfold.plugins.llm import paged_kernels

    paged_kernels.store(
        key, value, cache.tensor, layout.blocks, layout.offsets, block_size=cache.block_size, scheme=cache.scheme
    )
    return key, value


def _attend(
    layout: BatchLayout,
    cache: KvLayer,
    query: Tensor,
    stored: tuple[Tensor, Tensor],
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """[1, tokens, heads, head dim]; ``stored`` is what `_store` returned."""
    if layout.tiles is not None:
        from sixfold.plugins.llm import chunk_kernels

        attended = chunk_kernels.attend_rows(
            query[0], cache, layout.tiles, scaling=scaling, window=window, softcap=softcap
        )
        return attended.unsqueeze(0)
    keys, values = stored
    num_heads, num_tokens, head_dim = query.shape[1:]
    output = torch.empty((num_tokens, num_heads, head_dim), dtype=query.dtype, device=query.device)
    for group in layout.decodes:
        mask = _decode_mask(layout, group, query.dtype, window)
        output[group.start : group.end] = _decode(layout, group, query, cache, scaling, mask, softcap)
    for chunk in layout.prefills:
        here = slice(chunk.start, chunk.end)
        visible = prefill_mask(layout, chunk, query.device, window)
        attended = attend_chunk(
            layout,
            chunk,
            query[:, :, here],
            keys[None, :, here],
            values[None, :, here],
            cache,
            scaling,
            visible,
            softcap,
        )
        output[here] = attended[0].transpose(0, 1)
    return output.unsqueeze(0)


def _decode(
    layout: BatchLayout,
    group: DecodeGroup,
    query: Tensor,
    cache: KvLayer,
    scaling: float | None,
    mask: Tensor,
    softcap: float | None,
) -> Tensor:
    """Batched products over whole contexts: the fused kernel is made for many queries and is slower for so few."""
    num_rows = group.end - group.start
    num_heads, _, head_dim = query.shape[1:]
    keys, values = cache.gather(layout, group, group.block_ids, query.dtype)
    num_kv_heads = keys.shape[0] // num_rows
    # Query heads that share a kv head become further queries of it: nothing is repeated.
    queries = query[0, :, group.start : group.end].transpose(0, 1).reshape(num_rows * num_kv_heads, -1, head_dim)
    scale = head_dim**-0.5 if scaling is None else scaling
    hidden = mask.expand(-1, num_kv_heads, -1).reshape(num_rows * num_kv_heads, 1, -1)
    if softcap is None:
        scores = torch.baddbmm(hidden.expand(-1, queries.shape[1], -1), queries, keys.transpose(1, 2), alpha=scale)
    else:
        scores = capped(torch.bmm(queries, keys.transpose(1, 2)) * scale, softcap) + hidden
    return torch.bmm(torch.softmax(scores, dim=-1), values).reshape(num_rows, num_heads, head_dim)


def _decode_mask(layout: BatchLayout, group: DecodeGroup, dtype: torch.dtype, window: int | None) -> Tensor:
    """[rows, 1, context]: 0 where a row may look, minus infinity where not; the same for all layers of a step."""
    if window is not None and window >= group.num_context:
        window = None
    found = layout.masks.get((group.start, window))
    if found is None:
        position = torch.arange(group.num_context, device=group.lengths.device)
        ends = group.lengths.unsqueeze(1)
        hidden = position >= ends
        if window is not None:
            hidden |= position < ends - window
        found = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
        found = layout.masks[(group.start, window)] = found[:, None, :]
    return found
