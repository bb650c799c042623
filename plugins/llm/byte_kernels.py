"""The kernels of `kernels` for a cache of one byte a number: each token is quantized as it is written, and widened as it is
read, so that what memory must bring is half.

A token's scale multiplies its score, and its share of the values, instead of its numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from torch import Tensor

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
from sixfold.plugins.llm.kernels import PARALLEL_SCORES, PARALLEL_TOKENS, rotate
from sixfold.plugins.llm.kv_layer import LEAST_MAXIMUM, ByteLayer
from sixfold.plugins.llm.rows import AttentionRows

U8 = np.uint8
_LEAST = F32(LEAST_MAXIMUM)
_FP8_TOP, _INT8_TOP = F32(448.0), F32(127.0)
# What is added so that a sum's last bits are a small number's multiple of 2 ** -9, rounded; and the bits of that alone.
_SUBNORMAL, _SUBNORMAL_BITS = F32(16384.0), U32(0x46800000)
_LEAST_NORMAL_BITS = U32(121 << 23)  # of 2 ** -6
# The same for whole numbers of either sign.
_WHOLE, _WHOLE_BITS = F32(12582912.0), U32(0x4B400000)
_REBIAS = F32(2.0**120)  # from the exponents of e4m3 to those of float32


def rotate_and_store(
    qkv: Tensor,
    cache: ByteLayer,
    layout: BatchLayout,
    angles: tuple[Tensor, Tensor],
    norms: tuple[Any, Any],
    eps: float,
) -> None:
    """As `kernels.rotate_and_store`; the keys and values in ``qkv`` become what the cache gives for them."""
    rotate(qkv, cache.num_kv_heads, cache.head_dim, angles, norms, eps)
    run = _store.serial if len(qkv) < PARALLEL_TOKENS else _store.parallel
    run(
        bits(qkv).reshape(len(qkv), -1, cache.head_dim),
        cache.numbers.numpy(),
        cache.scales.numpy(),
        layout.blocks.numpy(),
        layout.offsets.numpy(),
        cache.scheme == "fp8",
    )


@piece
def _to_fp8(numbers: Any, row_bits: Any, shifted_bits: Any, dim: int) -> None:
    """The bits of float32, of at most 448, to those of e4m3, to nearest, ties to even.

    Args:
        numbers: uint8, written.
        row_bits: Of the values.
        shifted_bits: Of their sizes and `_SUBNORMAL` together.
        dim: How many.
    """
    for i in range(dim):
        sign = (row_bits[i] >> U32(24)) & U32(0x80)
        size = row_bits[i] & U32(0x7FFFFFFF)
        normal = ((size + U32(0x7FFFF) + ((size >> U32(20)) & U32(1))) >> U32(20)) - U32(120 << 3)
        small = shifted_bits[i] - _SUBNORMAL_BITS
        numbers[i] = U8(sign | (small if size < _LEAST_NORMAL_BITS else normal))


@piece
def _to_int8(numbers: Any, shifted_bits: Any, dim: int) -> None:
    for i in range(dim):
        numbers[i] = U8((shifted_bits[i] - _WHOLE_BITS) & U32(0xFF))


@piece
def _widen_bytes(wide: Any, wide_bits: Any, numbers: Any, count: int, is_fp8: bool) -> None:
    """Numbers, without their scale, to float32; ``wide_bits`` is the same memory as ``wide``."""
    if is_fp8:
        for i in range(count):
            number = U32(numbers[i])
            wide_bits[i] = ((number & U32(0x80)) << U32(24)) | ((number & U32(0x7F)) << U32(20))
        for i in range(count):
            wide[i] *= _REBIAS
    else:
        for i in range(count):
            wide[i] = F32(np.int8(numbers[i]))


@kernel
def _store(qkv: Any, numbers: Any, scales: Any, blocks: Any, offsets: Any, is_fp8: Any) -> None:
    num_tokens, num_parts, dim = qkv.shape
    num_kv_heads = numbers.shape[2]
    num_heads = num_parts - 2 * num_kv_heads
    num_chunks = min(num_tokens, 16)
    for chunk in prange(num_chunks):
        row, shifted, scale = np.empty(dim, F32), np.empty(dim, F32), np.empty(1, F32)
        row_bits, shifted_bits, scale_bits = row.view(U32), shifted.view(U32), scale.view(U32)
        for t in range(chunk * num_tokens // num_chunks, (chunk + 1) * num_tokens // num_chunks):
            for part in range(2 * num_kv_heads):
                given = qkv[t, num_heads + part]
                kept = numbers[blocks[t], part // num_kv_heads, part % num_kv_heads, offsets[t]]
                # By their bits, of which those of no number are the largest: arithmetic here may forget them.
                top = U32(0)
                for i in range(dim):
                    top = max(top, U32(given[i]) & U32(0x7FFF))
                scale_bits[0] = top << U32(16)
                largest = scale[0]
                if top >= U32(0x7F80):
                    inverse = F32(0)
                    scale_bits[0] = U32(0x7FC00000)
                else:
                    limit = _FP8_TOP if is_fp8 else _INT8_TOP
                    inverse = limit / largest if largest > _LEAST else F32(0)
                    scale[0] = largest / limit
                scales[blocks[t], part // num_kv_heads, part % num_kv_heads, offsets[t]] = scale[0]
                widen(row_bits, given, dim)
                if is_fp8:
                    for i in range(dim):
                        row[i] *= inverse
                        shifted[i] = abs(row[i]) + _SUBNORMAL
                    _to_fp8(kept, row_bits, shifted_bits, dim)
                else:
                    for i in range(dim):
                        shifted[i] = row[i] * inverse + _WHOLE
                    _to_int8(kept, shifted_bits, dim)
                _widen_bytes(row, row_bits, kept, dim, is_fp8)
                for i in range(dim):
                    row[i] *= scale[0]
                round_to_bfloat16(given, row_bits, dim)


def attend(qkv: Tensor, cache: ByteLayer, rows: AttentionRows, scaling: float, result: Tensor) -> None:
    """As `kernels.attend`."""
    threads = get_num_threads()
    run = _attend.serial if rows.num_tokens < PARALLEL_SCORES or threads == 1 else _attend.parallel
    run(
        bits(qkv).reshape(len(qkv), -1, cache.head_dim),
        cache.numbers.numpy(),
        cache.scales.numpy(),
        rows.rows,
        rows.sequences,
        rows.lengths,
        rows.tables,
        bits(result).reshape(len(result), -1, cache.head_dim),
        F32(scaling) * LOG2_E,
        min(threads, len(rows.rows) * cache.num_kv_heads),
        cache.scheme == "fp8",
    )


@kernel
def _attend(
    queries: Any,
    numbers: Any,
    scales: Any,
    rows: Any,
    sequences: Any,
    lengths: Any,
    tables: Any,
    result: Any,
    scaling: Any,
    num_chunks: Any,
    is_fp8: Any,
) -> None:
    num_rows, dim = len(rows), queries.shape[2]
    num_kv_heads, block_size = numbers.shape[2], numbers.shape[3]
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
                keys, values = numbers[blocks[b], 0, kv_head], numbers[blocks[b], 1, kv_head]
                key_scales, value_scales = scales[blocks[b], 0, kv_head], scales[blocks[b], 1, kv_head]
                for t in range(count):
                    _widen_bytes(tokens[t], tokens_bits[t], keys[t], dim, is_fp8)
                for g in range(num_shared):
                    new_top = top[g]
                    for t in range(count):
                        score = F32(0)
                        for i in range(dim):
                            score += query[g, i] * tokens[t, i]
                        score *= key_scales[t]
                        scores[g, t] = score
                        new_top = max(new_top, score)
                    shrink = np.exp2(max(top[g] - new_top, F32(-126.0)))
                    top[g] = new_top
                    weight[g] = weight[g] * shrink + exp2_sum(scores[g], powers, powers_bits, new_top, count)
                    scale_row(total[g], shrink, dim)
                for t in range(count):
                    _widen_bytes(tokens[t], tokens_bits[t], values[t], dim, is_fp8)
                for g in range(num_shared):
                    for t in range(count):
                        scores[g, t] *= value_scales[t]
                    add_shares(total[g], scores[g], tokens, count, dim)
            for g in range(num_shared):
                write_mean(result[r, kv_head * num_shared + g], total[g], total_bits[g], weight[g], dim)
