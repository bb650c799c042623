"""The device code of `paged_kernels`, in Triton's dialect of Python: its arguments are pointers, strides and constants.

Types and style are Triton's, so checkers leave this file alone.
"""
# mypy: ignore-errors
# pyright: basic, reportOperatorIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl


# How a step's arrays happen to lie must not ask for another kernel: it would be compiled while a request waits.
@triton.jit(do_not_specialize_on_alignment=["blocks", "offsets"])
def store_kernel(
    key,
    value,
    cache,
    blocks,
    offsets,
    key_head_stride,
    key_token_stride,
    value_head_stride,
    value_token_stride,
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
):
    token = tl.program_id(0)
    head = tl.program_id(1)
    block = tl.load(blocks + token).to(tl.int64)
    offset = tl.load(offsets + token)
    at = tl.arange(0, DIM_PADDED)
    inside = at < DIM
    k = tl.load(key + head * key_head_stride + token * key_token_stride + at, mask=inside)
    v = tl.load(value + head * value_head_stride + token * value_token_stride + at, mask=inside)
    target = ((block * 2 * KV_HEADS + head) * BLOCK_SIZE + offset) * DIM + at
    tl.store(cache + target, k, mask=inside)
    tl.store(cache + target + KV_HEADS * BLOCK_SIZE * DIM, v, mask=inside)


@triton.jit
def _quantized(x, largest, IS_FP8: tl.constexpr, LEAST: tl.constexpr):
    """Bytes of a row of float32; what is no number shows in its scale."""
    top = 448.0 if IS_FP8 else 127.0
    usual = (largest > LEAST) & (largest < float("inf"))
    x = tl.where(usual, x, 0.0) * (top / tl.where(usual, largest, 1.0))
    if IS_FP8:
        given = x.to(tl.uint32, bitcast=True)
        size = given & 0x7FFFFFFF
        normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - 960  # exponents of e4m3 begin 120 later
        # Below 2 ** -6 steps are as wide as the last bit of 2 ** 14, so that a sum with it is rounded to them.
        small = (tl.abs(x) + 16384.0).to(tl.uint32, bitcast=True) - 0x46800000
        return (tl.where(size < (121 << 23), small, normal) | ((given >> 24) & 0x80)).to(tl.uint8)
    return ((x + 12582912.0).to(tl.uint32, bitcast=True) - 0x4B400000).to(tl.uint8)  # rounded as the sum's last bits


@triton.jit
def widened(numbers, IS_FP8: tl.constexpr, TYPE: tl.constexpr):
    """Bytes as numbers, without their scale; every type of a query holds them exactly."""
    if IS_FP8:
        # By way of float16, of which e4m3 is a part: a card needs no fp8 of its own for that.
        wide = numbers.to(tl.uint16)
        half = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
        return (half.to(tl.float16, bitcast=True) * 256.0).to(TYPE)
    return numbers.to(tl.int8, bitcast=True).to(TYPE)


@triton.jit
def _store_row(given, numbers, scale, inside, IS_FP8: tl.constexpr, LEAST: tl.constexpr):
    x = tl.load(given, mask=inside, other=0.0).to(tl.float32)
    # By their bits, of which those of no number are the largest: a maximum of floats leaves them out.
    largest = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0).to(tl.float32, bitcast=True)
    tl.store(numbers, _quantized(x, largest, IS_FP8, LEAST), mask=inside)
    tl.store(scale, largest / (448.0 if IS_FP8 else 127.0))


@triton.jit(do_not_specialize_on_alignment=["blocks", "offsets"])
def store_bytes_kernel(
    key,
    value,
    cache,
    scales,
    blocks,
    offsets,
    key_head_stride,
    key_token_stride,
    value_head_stride,
    value_token_stride,
    KV_HEADS: tl.constexpr,
    RUN_BYTES: tl.constexpr,
    SCALES_AT: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    IS_FP8: tl.constexpr,
    LEAST: tl.constexpr,
):
    token = tl.program_id(0)
    head = tl.program_id(1)
    run = (tl.load(blocks + token).to(tl.int64) * 2 * KV_HEADS + head) * RUN_BYTES
    offset = tl.load(offsets + token)
    at = tl.arange(0, DIM_PADDED)
    inside = at < DIM
    k = key + head * key_head_stride + token * key_token_stride + at
    v = value + head * value_head_stride + token * value_token_stride + at
    _store_row(k, cache + run + offset * DIM + at, scales + (run + SCALES_AT) // 4 + offset, inside, IS_FP8, LEAST)
    run += KV_HEADS * RUN_BYTES
    _store_row(v, cache + run + offset * DIM + at, scales + (run + SCALES_AT) // 4 + offset, inside, IS_FP8, LEAST)


# Long because its tile stays in registers from the first load to the last store, under one set of names; half are arguments.
@triton.jit(
    do_not_specialize=["table_stride"],
    do_not_specialize_on_alignment=["tables", "lengths", "starts", "counts", "sequences", "partial_max", "partial_sum"],
)
def attend_kernel(
    query,
    cache,
    scales,
    tables,
    lengths,
    starts,
    counts,
    sequences,
    output,
    partial,
    partial_max,
    partial_sum,
    query_head_stride,
    query_token_stride,
    table_stride,
    scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    RUN: tl.constexpr,
    SCALES_AT: tl.constexpr,
    KEPT: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    CONTEXT: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    start = tl.load(starts + tile)
    count = tl.load(counts + tile)
    sequence = tl.load(sequences + tile).to(tl.int64)

    row = tl.arange(0, ROWS)
    token = row // GROUP
    head = kv_head * GROUP + row % GROUP
    real = token < count
    length = tl.load(lengths + start + token, mask=real, other=0)
    longest = tl.max(length, axis=0)
    dim = tl.arange(0, DIM_PADDED)
    inside = dim < DIM
    q = tl.load(
        query + head[:, None] * query_head_stride + (start + token)[:, None] * query_token_stride + dim[None, :],
        mask=real[:, None] & inside[None, :],
        other=0.0,
    )
    begin = 0
    if WINDOW > 0:
        # No row of the tile looks back further than its first one.
        begin = tl.maximum(longest - count - WINDOW + 1, 0) // CONTEXT * CONTEXT
    share = tl.cdiv(tl.cdiv(longest - begin, SPLITS), CONTEXT) * CONTEXT
    low = begin + split * share
    high = tl.minimum(low + share, longest)

    running_max = tl.full([ROWS], -float("inf"), tl.float32)
    running_sum = tl.zeros([ROWS], tl.float32)
    result = tl.zeros([ROWS, DIM_PADDED], tl.float32)
    for at in range(low, high, CONTEXT):
        position = at + tl.arange(0, CONTEXT)
        known = position < high
        block = tl.load(tables + sequence * table_stride + position // BLOCK_SIZE, mask=known, other=0).to(tl.int64)
        run = (block * 2 * KV_HEADS + kv_head) * RUN
        where = (run + position % BLOCK_SIZE * DIM)[:, None] + dim[None, :]
        present = known[:, None] & inside[None, :]
        k = tl.load(cache + where, mask=present, other=0)
        if KEPT == "":
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        else:
            k = widened(k, KEPT == "fp8", q.dtype)
            scale_at = scales + (run + SCALES_AT) // 4 + position % BLOCK_SIZE
            key_scale = tl.load(scale_at, mask=known, other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (key_scale * scale)[None, :]
        if SOFTCAP > 0:
            bent = scores / SOFTCAP
            scores = SOFTCAP * (1.0 - 2.0 / (tl.exp(2.0 * bent) + 1.0))
        seen = known[None, :] & (position[None, :] < length[:, None])
        if WINDOW > 0:
            seen = seen & (position[None, :] >= length[:, None] - WINDOW)
        scores = tl.where(seen, scores * 1.4426950408889634, -float("inf"))
        new_max = tl.maximum(running_max, tl.max(scores, axis=1))
        # Rows that have seen nothing yet: their maximum is minus infinity, and infinity minus infinity is no number.
        base = tl.where(new_max == -float("inf"), 0.0, new_max)
        weights = tl.exp2(scores - base[:, None])
        decay = tl.exp2(running_max - base)
        v = tl.load(cache + where + KV_HEADS * RUN, mask=present, other=0)
        running_sum = running_sum * decay + tl.sum(weights, axis=1)
        if KEPT != "":
            v = widened(v, KEPT == "fp8", q.dtype)
            weights = weights * tl.load(scale_at + KV_HEADS * RUN // 4, mask=known, other=0.0)[None, :]
        result = result * decay[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        running_max = new_max

    heads = KV_HEADS * GROUP
    place = (start + token).to(tl.int64) * heads + head
    if SPLITS == 1:
        total = tl.where(running_sum == 0.0, 1.0, running_sum)
        tl.store(
            output + place[:, None] * DIM + dim[None, :],
            (result / total[:, None]).to(output.dtype.element_ty),
            mask=real[:, None] & inside[None, :],
        )
    else:
        part = place * SPLITS + split
        tl.store(partial + part[:, None] * DIM + dim[None, :], result, mask=real[:, None] & inside[None, :])
        tl.store(partial_max + part, running_max, mask=real)
        tl.store(partial_sum + part, running_sum, mask=real)


@triton.jit(do_not_specialize_on_alignment=["partial_max", "partial_sum", "starts"])
def merge_kernel(
    partial,
    partial_max,
    partial_sum,
    output,
    starts,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    SPLITS: tl.constexpr,
):
    row = tl.load(starts + tl.program_id(0)).to(tl.int64)
    place = row * HEADS + tl.program_id(1)
    dim = tl.arange(0, DIM_PADDED)
    inside = dim < DIM
    part = place * SPLITS + tl.arange(0, SPLITS)
    maxima = tl.load(partial_max + part)
    top = tl.max(maxima, axis=0)
    factors = tl.exp2(maxima - tl.where(top == -float("inf"), 0.0, top))
    total = tl.sum(tl.load(partial_sum + part) * factors, axis=0)
    parts = tl.load(partial + part[:, None] * DIM + dim[None, :], mask=inside[None, :], other=0.0)
    merged = tl.sum(parts * factors[:, None], axis=0) / tl.where(total == 0.0, 1.0, total)
    tl.store(output + place * DIM + dim, merged.to(output.dtype.element_ty), mask=inside)
