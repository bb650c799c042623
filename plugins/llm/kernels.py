"""bfloat16 kernels of the decoder on a CPU: rotary embedding with the write to the cache, and decode attention that reads
cache blocks where they lie.

Measured beside the same work in torch's operators (24 rows, 160 tokens of context, 9 heads over 3 kv heads of 64, two
threads of a Zen 4): attention 0.30 ms a layer instead of 0.60, of which the gather of the context alone took 0.25.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from torch import Tensor

from sixfold.core.runtime.bf16_dots import add_16_rows, dot_16_rows, has_bf16_dot, prefetch_lines, round_16
from sixfold.core.runtime.jit import (
    F32,
    I32,
    LOG2_E,
    U32,
    bits,
    exp2_sum,
    get_num_threads,
    kernel,
    piece,
    round_to_bfloat16,
    widen,
)
from sixfold.plugins.llm.attention_pieces import NO_SCORE, add_shares, clear_row, scale_row, write_mean
from sixfold.plugins.llm.batch_layout import BatchLayout
from sixfold.plugins.llm.rows import AttentionRows

# Below these the second thread takes longer to wake than it saves.
PARALLEL_TOKENS = 64
PARALLEL_SCORES = 1024
# From here on torch's fused attention, which keeps a tile of queries while it reads the context, is faster.
_MAX_PREFILL_CONTEXT = 1024

NO_NORM = np.empty(0, F32)
"""Stands for a model without norms of its queries and keys."""


def rotate_and_store(
    qkv: Tensor, cache: Tensor, layout: BatchLayout, angles: tuple[Tensor, Tensor], norms: tuple[Any, Any], eps: float
) -> None:
    """Norms and rotates queries and keys in place, and writes keys and values into the cache.

    Args:
        qkv: [tokens, (heads + 2 * kv heads) * head dim], bfloat16, contiguous.
        cache: [blocks, 2, kv heads, block size, head dim], bfloat16.
        layout: Says where each token goes.
        angles: Cosine and sine, [tokens, head dim], bfloat16; the second half of a head is the partner of the first.
        norms: Weights of the RMS norms of queries and keys, [head dim] float32, or `NO_NORM`.
        eps: Of these norms.
    """
    head_dim = cache.shape[4]
    run = _rotate_and_store.serial if len(qkv) < PARALLEL_TOKENS else _rotate_and_store.parallel
    run(
        bits(qkv).reshape(len(qkv), -1, head_dim),
        bits(cache),
        layout.blocks.numpy(),
        layout.offsets.numpy(),
        bits(angles[0]),
        bits(angles[1]),
        norms[0],
        norms[1],
        F32(eps),
    )


def rotate(
    qkv: Tensor,
    num_kv_heads: int,
    head_dim: int,
    angles: tuple[Tensor, Tensor],
    norms: tuple[Any, Any],
    eps: float,
) -> None:
    """`rotate_and_store` without the cache."""
    nowhere, nothing = np.empty(0, np.int64), np.empty((0, 2, num_kv_heads, 0, head_dim), np.uint16)
    run = _rotate_and_store.serial if len(qkv) < PARALLEL_TOKENS else _rotate_and_store.parallel
    heads = bits(qkv).reshape(len(qkv), -1, head_dim)
    run(heads, nothing, nowhere, nowhere, bits(angles[0]), bits(angles[1]), norms[0], norms[1], F32(eps))


@kernel
def _rotate_and_store(
    qkv: Any, cache: Any, blocks: Any, offsets: Any, cosines: Any, sines: Any, q_norm: Any, k_norm: Any, eps: Any
) -> None:
    num_tokens, num_parts, dim = qkv.shape
    num_kv_heads = cache.shape[2]
    num_heads = num_parts - 2 * num_kv_heads
    half = dim // 2
    num_chunks = min(num_tokens, 16)
    for chunk in prange(num_chunks):
        row, cosine, sine, rotated = np.empty(dim, F32), np.empty(dim, F32), np.empty(dim, F32), np.empty(dim, F32)
        row_bits, rotated_bits = row.view(U32), rotated.view(U32)
        cosine_bits, sine_bits = cosine.view(U32), sine.view(U32)
        for t in range(chunk * num_tokens // num_chunks, (chunk + 1) * num_tokens // num_chunks):
            widen(cosine_bits, cosines[t], dim)
            widen(sine_bits, sines[t], dim)
            for part in range(num_heads + num_kv_heads):
                widen(row_bits, qkv[t, part], dim)
                norm = q_norm if part < num_heads else k_norm
                if len(norm):
                    total = F32(0)
                    for i in range(dim):
                        total += row[i] * row[i]
                    scale = F32(1) / np.sqrt(total / F32(dim) + eps)
                    for i in range(dim):
                        row[i] *= scale * norm[i]
                for i in range(half):
                    rotated[i] = row[i] * cosine[i] - row[i + half] * sine[i]
                    rotated[i + half] = row[i + half] * cosine[i + half] + row[i] * sine[i + half]
                round_to_bfloat16(qkv[t, part], rotated_bits, dim)
            for head in range(num_kv_heads if len(cache) else 0):
                cache[blocks[t], 0, head, offsets[t]] = qkv[t, num_heads + head]
                cache[blocks[t], 1, head, offsets[t]] = qkv[t, num_heads + num_kv_heads + head]


def max_prefill_context(cache: Tensor) -> int:
    """Up to which context `attend` is the faster way for the rows of a prefill, too; 0 for never."""
    return _MAX_PREFILL_CONTEXT if _takes_dots(cache) else 0


def _takes_dots(cache: Tensor) -> bool:
    return has_bf16_dot() and cache.shape[4] % 32 == 0 and cache.shape[3] % 16 == 0


def attend(qkv: Tensor, cache: Tensor, rows: AttentionRows, scaling: float, result: Tensor) -> None:
    """Attention of rows to their own contexts. A row's result is the same to the bit whatever rows are beside it.

    Args:
        qkv: [tokens, (heads + 2 * kv heads) * head dim], rotated.
        cache: [blocks, 2, kv heads, block size, head dim], the rows' own keys and values included.
        rows: Which rows, and their contexts.
        scaling: Of the scores.
        result: [tokens, heads * head dim]; the rows' own are written.

    Source: the running softmax of Milakov and Gimelshein 2018, 16 tokens or a block of the cache at a time.
    """
    head_dim = cache.shape[4]
    kind = _attend_by_dots if _takes_dots(cache) else _attend
    threads = get_num_threads()
    run = kind.serial if rows.num_tokens < PARALLEL_SCORES or threads == 1 else kind.parallel
    run(
        bits(qkv).reshape(len(qkv), -1, head_dim),
        bits(cache),
        rows.rows,
        rows.sequences,
        rows.lengths,
        rows.tables,
        bits(result).reshape(len(result), -1, head_dim),
        F32(scaling) * LOG2_E,
        min(threads, len(rows.rows) * cache.shape[2]),
    )


@kernel
def _attend(
    queries: Any,
    cache: Any,
    rows: Any,
    sequences: Any,
    lengths: Any,
    tables: Any,
    result: Any,
    scaling: Any,
    num_chunks: Any,
) -> None:
    num_rows, dim = len(rows), queries.shape[2]
    num_kv_heads, block_size = cache.shape[2], cache.shape[3]
    num_shared = result.shape[1] // num_kv_heads
    num_parts = num_rows * num_kv_heads
    for chunk in prange(num_chunks):
        query, total = np.empty((num_shared, dim), F32), np.empty((num_shared, dim), F32)
        query_bits, total_bits = query.view(U32), total.view(U32)
        tokens = np.empty((block_size, dim), F32)
        tokens_bits = tokens.view(U32)
        scores, powers = np.empty((num_shared, block_size), F32), np.empty(block_size, F32)
        powers_bits = powers.view(I32)
        top, weight = np.empty(num_shared, F32), np.empty(num_shared, F32)
        for part in range(chunk, num_parts, num_chunks):  # by turns: the contexts of a prefill's rows grow
            kv_head, r = part // num_rows, rows[part % num_rows]
            blocks = tables[sequences[r]]
            for g in range(num_shared):
                widen(query_bits[g], queries[r, kv_head * num_shared + g], dim)
                scale_row(query[g], scaling, dim)
                clear_row(total[g], dim)
                top[g], weight[g] = NO_SCORE, F32(0)
            for b in range((lengths[r] + block_size - 1) // block_size):
                count = min(block_size, lengths[r] - b * block_size)
                keys, values = cache[blocks[b], 0, kv_head], cache[blocks[b], 1, kv_head]
                for t in range(count):
                    widen(tokens_bits[t], keys[t], dim)
                for g in range(num_shared):
                    new_top = top[g]
                    for t in range(count):
                        score = F32(0)
                        for i in range(dim):
                            score += query[g, i] * tokens[t, i]
                        scores[g, t] = score
                        new_top = max(new_top, score)
                    shrink = np.exp2(max(top[g] - new_top, F32(-126.0)))
                    top[g] = new_top
                    weight[g] = weight[g] * shrink + exp2_sum(scores[g], powers, powers_bits, new_top, count)
                    scale_row(total[g], shrink, dim)
                for t in range(count):
                    widen(tokens_bits[t], values[t], dim)
                for g in range(num_shared):
                    add_shares(total[g], scores[g], tokens, count, dim)
            for g in range(num_shared):
                write_mean(result[r, kv_head * num_shared + g], total[g], total_bits[g], weight[g], dim)


@piece
def _scale_scores(scores: Any, scaling: Any, count: int, top: Any) -> Any:
    """Scales 16 scores, of which those from ``count`` on belong to no token; returns the highest of them and ``top``."""
    for t in range(16):
        scores[t] = scores[t] * scaling
    for t in range(count, 16):
        scores[t] = NO_SCORE
    for t in range(16):
        top = max(top, scores[t])
    return top


@kernel
def _attend_by_dots(
    queries: Any,
    cache: Any,
    rows: Any,
    sequences: Any,
    lengths: Any,
    tables: Any,
    result: Any,
    scaling: Any,
    num_chunks: Any,
) -> None:
    """As `_attend`, by products of bfloat16 pairs; the softmax weights are rounded to bfloat16 before they meet the values."""
    num_rows, dim = len(rows), queries.shape[2]
    num_kv_heads, block_size = cache.shape[2], cache.shape[3]
    num_shared = result.shape[1] // num_kv_heads
    num_parts = num_rows * num_kv_heads
    row_bytes = dim * 2
    num_lines = block_size * row_bytes // 64
    cache_at = np.uint64(cache.ctypes.data)
    block_bytes, values_bytes = 2 * num_kv_heads * block_size * row_bytes, num_kv_heads * block_size * row_bytes
    for chunk in prange(num_chunks):
        total = np.empty((num_shared, dim), F32)
        total_bits = total.view(U32)
        scores, powers, shares = np.empty(16, F32), np.empty(16, F32), np.empty(16, np.uint16)
        powers_bits = powers.view(I32)
        top, weight = np.empty(num_shared, F32), np.empty(num_shared, F32)
        scores_at, shares_at = np.uint64(scores.ctypes.data), np.uint64(shares.ctypes.data)
        for part in range(chunk, num_parts, num_chunks):  # by turns: the contexts of a prefill's rows grow
            kv_head, r = part // num_rows, rows[part % num_rows]
            blocks = tables[sequences[r]]
            for g in range(num_shared):
                clear_row(total[g], dim)
                top[g], weight[g] = NO_SCORE, F32(0)
            num_blocks = (lengths[r] + block_size - 1) // block_size
            for b in range(num_blocks):
                keys_at = cache_at + np.uint64(blocks[b] * block_bytes + kv_head * block_size * row_bytes)
                if b + 1 < num_blocks:
                    following = cache_at + np.uint64(blocks[b + 1] * block_bytes + kv_head * block_size * row_bytes)
                    prefetch_lines(following, num_lines)
                    prefetch_lines(following + np.uint64(values_bytes), num_lines)
                for first in range(0, block_size, 16):
                    count = min(16, lengths[r] - b * block_size - first)
                    if count <= 0:
                        break
                    keys = keys_at + np.uint64(first * row_bytes)
                    for g in range(num_shared):
                        query_at = np.uint64(queries[r, kv_head * num_shared + g].ctypes.data)
                        dot_16_rows(query_at, keys, dim // 32, scores_at)
                        new_top = _scale_scores(scores, scaling, count, top[g])
                        shrink = np.exp2(max(top[g] - new_top, F32(-126.0)))
                        top[g] = new_top
                        weight[g] = weight[g] * shrink + exp2_sum(scores, powers, powers_bits, new_top, 16)
                        if shrink != F32(1):
                            scale_row(total[g], shrink, dim)
                        round_16(scores_at, shares_at)
                        add_16_rows(
                            shares_at, keys + np.uint64(values_bytes), dim // 32, np.uint64(total[g].ctypes.data)
                        )
            for g in range(num_shared):
                write_mean(result[r, kv_head * num_shared + g], total[g], total_bits[g], weight[g], dim)
