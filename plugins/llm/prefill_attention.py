"""Attention of a prompt's rows by torch's operators: many rows of one sequence, to what is before them and to themselves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sixfold.plugins.llm.batch_layout import BatchLayout, PrefillChunk
from sixfold.plugins.llm.kv_layer import KvLayer

# Scores that are held at once where no fused kernel does it: 64 MiB of float32.
_MAX_SCORES = 1 << 24


def attend_chunk(
    layout: BatchLayout,
    chunk: PrefillChunk,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cache: KvLayer,
    scaling: float | None,
    mask: Tensor | None,
    softcap: float | None,
) -> Tensor:
    """Attention of a prompt's rows, [1, heads, rows, head dim], to their context in the cache or, of a first chunk, to ``key``.

    Args:
        layout: Of the step.
        chunk: The rows.
        query: [1, heads, rows, head dim].
        key: [1, kv heads, rows, head dim], of these rows.
        value: As ``key``.
        cache: Of the layer.
        scaling: As in `attention.paged_attention`.
        mask: From `prefill_mask`.
        softcap: As in `attention.paged_attention`.
    """
    if chunk.block_ids is not None:
        context = cache.gather(layout, chunk, chunk.block_ids, query.dtype)[:, :, : chunk.num_context]
        key, value = context[0].unsqueeze(0), context[1].unsqueeze(0)
    if softcap is not None:
        return _capped_attention(query, key, value, mask, scaling, softcap)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _capped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, softcap: float
) -> Tensor:
    """Attention whose scores are capped, which no fused kernel of the processor's does; so some rows at a time.

    Args:
        query: [1, heads, rows, head dim].
        key: [1, kv heads, context, head dim].
        value: As ``key``.
        mask: [rows, context], true where a row may look; None for causal attention of as many rows as the context has.
        scaling: As in `attention.paged_attention`.
        softcap: As in `attention.paged_attention`.

    Returns:
        [1, heads, rows, head dim].

    Source: Gemma Team 2024 (Gemma 2), section 2, logit soft-capping.
    """
    num_heads, num_rows, head_dim = query.shape[1:]
    num_kv_heads, num_context = key.shape[1:3]
    scale = head_dim**-0.5 if scaling is None else scaling
    if mask is None:
        mask = torch.ones((num_rows, num_context), dtype=torch.bool, device=query.device).tril()
    grouped = query[0].reshape(num_kv_heads, num_heads // num_kv_heads, num_rows, head_dim)
    size = max(1, _MAX_SCORES // (num_heads * num_context))
    parts: list[Tensor] = []
    for begin in range(0, num_rows, size):
        rows = grouped[:, :, begin : begin + size]
        scores = capped(torch.matmul(rows, key[0].unsqueeze(1).transpose(2, 3)) * scale, softcap)
        scores = scores.masked_fill(~mask[begin : begin + size], -torch.inf)
        parts.append(torch.matmul(torch.softmax(scores, dim=-1), value[0].unsqueeze(1)))
    return torch.cat(parts, dim=2).flatten(0, 1).unsqueeze(0)


def capped(scores: Tensor, softcap: float) -> Tensor:
    """Scores that none goes beyond."""
    return torch.tanh(scores / softcap) * softcap


def prefill_mask(layout: BatchLayout, chunk: PrefillChunk, device: torch.device, window: int | None) -> Tensor | None:
    """[chunk, context], true where a row may look; None where plain causal attention is meant."""
    if window is not None and window >= chunk.num_context:
        window = None
    if chunk.block_ids is None and window is None:
        return None
    found = layout.masks.get((chunk.start, window))
    if found is None:
        row = torch.arange(chunk.num_context - (chunk.end - chunk.start), chunk.num_context, device=device).unsqueeze(1)
        position = torch.arange(chunk.num_context, device=device)
        found = position <= row
        if window is not None:
            found &= position > row - window
        layout.masks[(chunk.start, window)] = found
    return found
