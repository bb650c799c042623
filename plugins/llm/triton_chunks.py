"""The device code of `chunk_kernels`, in Triton's dialect of Python: its arguments are pointers, strides and constants.

Types and style are Triton's, so checkers leave this file alone.
"""
# mypy: ignore-errors
# pyright: basic, reportOperatorIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from sixfold.plugins.llm.triton_kernels import widened


@triton.jit
def _attend_keys(
    first_key,
    behind,
    high,
    q,
    cache,
    scales,
    table,
    kv_head,
    length,
    scale,
    running_max,
    running_sum,
    result,
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    RUN: tl.constexpr,
    SCALES_AT: tl.constexpr,
    KEPT: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Takes the keys from ``first_key`` to ``behind`` into the softmax so far; without a mask where every row sees them all."""
    dim = tl.arange(0, DIM_PADDED)
    inside = (dim < DIM)[None, :]
    # Powers of 2 are cheaper than powers of e. Capped scores are scaled before they are bent.
    exponent = 1.4426950408889634 if SOFTCAP > 0 else scale * 1.4426950408889634
    for at in range(first_key, behind, KEYS):
        position = at + tl.arange(0, KEYS)
        known = position < high
        if MASKED:
            block = tl.load(table + position // BLOCK_SIZE, mask=known, other=0).to(tl.int64)
        else:
            block = tl.load(table + position // BLOCK_SIZE).to(tl.int64)
        run = (block * 2 * KV_HEADS + kv_head) * RUN
        where = cache + (run + position % BLOCK_SIZE * DIM)[:, None] + dim[None, :]
        if MASKED:
            k = tl.load(where, mask=known[:, None] & inside, other=0)
        elif DIM == DIM_PADDED:
            k = tl.load(where)
        else:
            k = tl.load(where, mask=inside, other=0)
        if KEPT != "":
            k = widened(k, KEPT == "fp8", q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if KEPT != "":
            scale_at = scales + (run + SCALES_AT) // 4 + position % BLOCK_SIZE
            scores = scores * tl.load(scale_at, mask=known, other=0.0)[None, :]
        if SOFTCAP > 0:
            scores = SOFTCAP * (1.0 - 2.0 / (tl.exp2(scores * (scale * 2.8853900817779268 / SOFTCAP)) + 1.0))
        if MASKED:
            seen = position[None, :] < length[:, None]
            if WINDOW > 0:
                seen = seen & (position[None, :] >= length[:, None] - WINDOW)
            scores = tl.where(seen, scores, -float("inf"))
        new_max = tl.maximum(running_max, tl.max(scores, axis=1) * exponent)
        base = new_max
        if MASKED:
            # Rows that have seen nothing yet: their maximum is minus infinity, and infinity minus infinity is no number.
            base = tl.where(new_max == -float("inf"), 0.0, new_max)
        weights = tl.exp2(scores * exponent - base[:, None])
        decay = tl.exp2(running_max - base)
        if MASKED:
            v = tl.load(where + KV_HEADS * RUN, mask=known[:, None] & inside, other=0)
        elif DIM == DIM_PADDED:
            v = tl.load(where + KV_HEADS * RUN)
        else:
            v = tl.load(where + KV_HEADS * RUN, mask=inside, other=0)
        running_sum = running_sum * decay + tl.sum(weights, axis=1)
        if KEPT != "":
            v = widened(v, KEPT == "fp8", q.dtype)
            weights = weights * tl.load(scale_at + KV_HEADS * RUN // 4, mask=known, other=0.0)[None, :]
        result = result * decay[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        running_max = new_max
    return running_max, running_sum, result


# Long because its tile stays in registers from the first load to the last store, under one set of names; half are arguments.
# How a step's arrays happen to lie must not ask for another kernel: it would be compiled while a request waits.
@triton.jit(
    do_not_specialize=["table_stride"],
    do_not_specialize_on_alignment=["tables", "lengths", "starts", "counts", "sequences"],
)
def attend_chunks_kernel(
    query,
    cache,
    scales,
    tables,
    lengths,
    starts,
    counts,
    sequences,
    output,
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
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    start = tl.load(starts + tile)
    count = tl.load(counts + tile)
    table = tables + tl.load(sequences + tile).to(tl.int64) * table_stride
    # Rows are tokens that follow one another, each with all query heads that share the kv head.
    row = tl.arange(0, ROWS)
    token = row // GROUP
    head = kv_head * GROUP + row % GROUP
    real = token < count
    shortest = tl.load(lengths + start)
    high = shortest + count - 1
    length = tl.where(real, shortest + token, 0)

    # The keys that every row of the tile sees, in whole blocks: most of a long context's.
    low = 0
    common_low = 0
    if WINDOW > 0:
        low = tl.maximum(shortest - WINDOW, 0) // KEYS * KEYS
        common_low = tl.minimum(tl.cdiv(tl.maximum(high - WINDOW, 0), KEYS) * KEYS, high)
    common_high = tl.maximum(shortest // KEYS * KEYS, common_low)

    dim = tl.arange(0, DIM_PADDED)
    inside = dim < DIM
    place = (start + token).to(tl.int64)
    q = tl.load(
        query + head[:, None] * query_head_stride + place[:, None] * query_token_stride + dim[None, :],
        mask=real[:, None] & inside[None, :],
        other=0.0,
    )
    running_max = tl.full([ROWS], -float("inf"), tl.float32)
    running_sum = tl.zeros([ROWS], tl.float32)
    result = tl.zeros([ROWS, DIM_PADDED], tl.float32)
    for part in tl.static_range(0 if WINDOW > 0 else 1, 3):
        running_max, running_sum, result = _attend_keys(
            low if part == 0 else (common_low if part == 1 else common_high),
            common_low if part == 0 else (common_high if part == 1 else high),
            high,
            q,
            cache,
            scales,
            table,
            kv_head,
            length,
            scale,
            running_max,
            running_sum,
            result,
            KV_HEADS=KV_HEADS,
            BLOCK_SIZE=BLOCK_SIZE,
            RUN=RUN,
            SCALES_AT=SCALES_AT,
            KEPT=KEPT,
            DIM=DIM,
            DIM_PADDED=DIM_PADDED,
            KEYS=KEYS,
            WINDOW=WINDOW,
            SOFTCAP=SOFTCAP,
            MASKED=part != 1,
            PRECISION=PRECISION,
        )
    total = tl.where(running_sum == 0.0, 1.0, running_sum)
    target = (place * (KV_HEADS * GROUP) + head) * DIM
    tl.store(
        output + target[:, None] + dim[None, :],
        (result / total[:, None]).to(output.dtype.element_ty),
        mask=real[:, None] & inside[None, :],
    )
