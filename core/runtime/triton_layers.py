"""The device code of `gpu_layers`, in Triton's dialect of Python: its arguments are pointers, strides and constants.

Types and style are Triton's, so checkers leave this file alone.
"""
# mypy: ignore-errors
# pyright: basic, reportOperatorIssue=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _attend_keys(
    first_key,
    behind,
    high,
    q,
    key,
    value,
    key_row_stride,
    value_row_stride,
    start,
    end,
    exponent,
    running_max,
    running_sum,
    result,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Takes the keys from ``first_key`` to ``behind`` into the softmax so far; without a mask where every row sees them all."""
    dim = tl.arange(0, DIM_PADDED)
    inside = (dim < DIM)[None, :]
    position = first_key + tl.arange(0, KEYS)
    key += position.to(tl.int64)[:, None] * key_row_stride + dim[None, :]
    value += position.to(tl.int64)[:, None] * value_row_stride + dim[None, :]
    for _ in range(first_key, behind, KEYS):
        known = (position < high)[:, None]
        if MASKED:
            k = tl.load(key, mask=known & inside, other=0.0)
        elif DIM == DIM_PADDED:
            k = tl.load(key)
        else:
            k = tl.load(key, mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if MASKED:
            seen = (position[None, :] >= start[:, None]) & (position[None, :] < end[:, None])
            scores = tl.where(seen, scores, -float("inf"))
        new_max = tl.maximum(running_max, tl.max(scores, axis=1) * exponent)
        base = new_max
        if MASKED:
            # Rows that have seen nothing yet: their maximum is minus infinity, and infinity minus infinity is no number.
            base = tl.where(new_max == -float("inf"), 0.0, new_max)
        weights = tl.exp2(scores * exponent - base[:, None])
        decay = tl.exp2(running_max - base)
        if MASKED:
            v = tl.load(value, mask=known & inside, other=0.0)
        elif DIM == DIM_PADDED:
            v = tl.load(value)
        else:
            v = tl.load(value, mask=inside, other=0.0)
        running_sum = running_sum * decay + tl.sum(weights, axis=1)
        result = result * decay[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        running_max = new_max
        key += KEYS * key_row_stride
        value += KEYS * value_row_stride
        position += KEYS
    return running_max, running_sum, result


# Long because its tile stays in registers from the first load to the last store, under one set of names.
@triton.jit
def attend_spans_kernel(
    query,
    key,
    value,
    starts,
    ends,
    output,
    query_row_stride,
    query_head_stride,
    key_row_stride,
    key_head_stride,
    value_row_stride,
    value_head_stride,
    num_rows,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PACKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # A tile has ROWS queries: PACKED neighbouring heads, which share their keys, of ROWS // PACKED neighbouring rows.
    inner = tl.arange(0, ROWS)
    head = tl.program_id(0) * PACKED + inner % PACKED
    kv_head = tl.program_id(0) * PACKED // GROUP
    first = tl.program_id(1) * (ROWS // PACKED)
    row = first + inner // PACKED
    real = row < num_rows
    start = tl.load(starts + row, mask=real, other=num_rows).to(tl.int32)
    end = tl.load(ends + row, mask=real, other=0).to(tl.int32)
    # The keys that any row of the tile sees; rows of padding have an empty span behind all others.
    low = tl.min(start, axis=0)
    high = tl.max(end, axis=0)
    behind = first + ROWS // PACKED
    if CAUSAL:
        high = tl.minimum(high, behind)
        end = tl.minimum(end, row + 1)
    if WINDOW > 0:
        low = tl.maximum(low, first - WINDOW + 1)
        start = tl.maximum(start, row - WINDOW + 1)
        if not CAUSAL:
            high = tl.minimum(high, behind + WINDOW - 1)
            end = tl.minimum(end, row + WINDOW)
    # The keys that every row of the tile sees, in whole blocks: most of a long sequence's.
    common_low = tl.minimum(low + tl.cdiv(tl.maximum(tl.max(start, axis=0) - low, 0), KEYS) * KEYS, high)
    num_common = tl.maximum(tl.min(end, axis=0) - common_low, 0) // KEYS
    common_high = tl.minimum(common_low + num_common * KEYS, tl.maximum(high, common_low))

    dim = tl.arange(0, DIM_PADDED)
    inside = dim < DIM
    q = tl.load(
        query + row.to(tl.int64)[:, None] * query_row_stride + head[:, None] * query_head_stride + dim[None, :],
        mask=real[:, None] & inside[None, :],
        other=0.0,
    )
    key += kv_head * key_head_stride
    value += kv_head * value_head_stride
    exponent = scale * 1.4426950408889634  # powers of 2 are cheaper than powers of e
    running_max = tl.full([ROWS], -float("inf"), tl.float32)
    running_sum = tl.zeros([ROWS], tl.float32)
    result = tl.zeros([ROWS, DIM_PADDED], tl.float32)
    for part in tl.static_range(3):
        running_max, running_sum, result = _attend_keys(
            low if part == 0 else (common_low if part == 1 else common_high),
            common_low if part == 0 else (common_high if part == 1 else high),
            high,
            q,
            key,
            value,
            key_row_stride,
            value_row_stride,
            start,
            end,
            exponent,
            running_max,
            running_sum,
            result,
            DIM=DIM,
            DIM_PADDED=DIM_PADDED,
            KEYS=KEYS,
            MASKED=part != 1,
            PRECISION=PRECISION,
        )
    total = tl.where(running_sum == 0.0, 1.0, running_sum)
    target = (row.to(tl.int64) * HEADS + head) * DIM
    tl.store(
        output + target[:, None] + dim[None, :],
        (result / total[:, None]).to(output.dtype.element_ty),
        mask=real[:, None] & inside[None, :],
    )


@triton.jit
def rms_norm_kernel(x, weight, output, eps, DIM: tl.constexpr, DIM_PADDED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * DIM
    at = tl.arange(0, DIM_PADDED)
    inside = at < DIM
    values = tl.load(x + row + at, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(values * values, axis=0) / DIM + eps)
    factor = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + row + at, (values * scale * factor).to(output.dtype.element_ty), mask=inside)


@triton.jit
def add_layer_norm_kernel(x, residual, weight, bias, output, eps, DIM: tl.constexpr, DIM_PADDED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * DIM
    at = tl.arange(0, DIM_PADDED)
    inside = at < DIM
    values = tl.load(x + row + at, mask=inside, other=0.0).to(tl.float32)
    values += tl.load(residual + row + at, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, values - tl.sum(values, axis=0) / DIM, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / DIM + eps)
    factor = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + row + at, (centred * scale * factor + shift).to(output.dtype.element_ty), mask=inside)


@triton.jit
def gate_kernel(
    opened, x, output, eps, DIM: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, WIDTH_PADDED: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = at < DIM
    gate = tl.load(opened + row * 2 * DIM + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(opened + row * 2 * DIM + DIM + at, mask=inside, other=0.0).to(tl.float32)
    place = tl.arange(0, WIDTH_PADDED)
    values = tl.load(x + row * WIDTH + place, mask=place < WIDTH, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(values * values, axis=0) / WIDTH + eps)
    gate *= scale
    result = gate / (1.0 + tl.exp(-gate)) * (up * scale)
    tl.store(output + row * DIM + at, result.to(output.dtype.element_ty), mask=inside)


@triton.jit
def rotate_kernel(
    qkv,
    cos,
    sin,
    query_norm,
    key_norm,
    eps,
    row_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    NORMED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = tl.arange(0, HALF_PADDED)
    narrow = at < HALF
    inside = (head < HEADS + KV_HEADS)[:, None] & narrow[None, :]
    place = qkv + row * row_stride + head[:, None] * (2 * HALF) + at[None, :]
    left = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(place + HALF, mask=inside, other=0.0).to(tl.float32)
    if NORMED:
        squares = tl.sum(left * left, axis=1) + tl.sum(right * right, axis=1)
        scale = (1.0 / tl.sqrt(squares / (2 * HALF) + eps))[:, None]
        is_query = (head < HEADS)[:, None]
        query_left = tl.load(query_norm + at, mask=narrow, other=0.0).to(tl.float32)[None, :]
        query_right = tl.load(query_norm + HALF + at, mask=narrow, other=0.0).to(tl.float32)[None, :]
        key_left = tl.load(key_norm + at, mask=narrow, other=0.0).to(tl.float32)[None, :]
        key_right = tl.load(key_norm + HALF + at, mask=narrow, other=0.0).to(tl.float32)[None, :]
        left = left * scale * tl.where(is_query, query_left, key_left)
        right = right * scale * tl.where(is_query, query_right, key_right)
    angles = row * 2 * HALF + at
    cos_left = tl.load(cos + angles, mask=narrow, other=0.0).to(tl.float32)[None, :]
    cos_right = tl.load(cos + angles + HALF, mask=narrow, other=0.0).to(tl.float32)[None, :]
    sin_left = tl.load(sin + angles, mask=narrow, other=0.0).to(tl.float32)[None, :]
    sin_right = tl.load(sin + angles + HALF, mask=narrow, other=0.0).to(tl.float32)[None, :]
    tl.store(place, (left * cos_left - right * sin_left).to(qkv.dtype.element_ty), mask=inside)
    tl.store(place + HALF, (right * cos_right + left * sin_right).to(qkv.dtype.element_ty), mask=inside)
