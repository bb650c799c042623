"""The kernels for GPUs, run by Triton's interpreter, give what plain torch gives."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton", reason="the kernels for GPUs need Triton")

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sixfold.core.runtime import gpu_layers
from sixfold.core.runtime.gpu_layers import (
    HeadNorms,
    Spans,
    Tile,
    add_layer_norm,
    attend_spans,
    rms_norm,
    rotate_heads,
    silu_gate,
)

CLOSE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}


def spans_of(lengths: list[int], num_padding: int) -> Spans:
    total = sum(lengths) + num_padding
    starts, ends = torch.full((2, total), total)
    at = 0
    for length in lengths:
        starts[at : at + length], ends[at : at + length] = at, at + length
        at += length
    return Spans(starts, ends)


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, scaling: float, causal: bool, window: int | None
) -> Tensor:
    row = torch.arange(len(query))
    seen = (row >= spans.starts[:, None]) & (row < spans.ends[:, None])
    if causal:
        seen &= row <= row[:, None]
    if window is not None:
        seen &= (row - row[:, None]).abs() < window
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1).double() for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.double(), key) * scaling
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
    return torch.einsum("hqk,khd->qhd", weights, value)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    num_padding=st.sampled_from([0, 1, 70]),
    heads=st.sampled_from([(1, 1), (6, 2), (4, 1)]),
    tile=st.sampled_from(
        [gpu_layers.TILE, Tile(16, 16, 4, 2), Tile(32, 16, 4, 2, heads=2), Tile(64, 16, 4, 2, heads=4)]
    ),
    dim=st.sampled_from([8, 24]),
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 40]),
    dtype=st.sampled_from([torch.float32, torch.float16]),  # the interpreter's products know no bfloat16
)
def test_rows_attend_to_their_own_sequence_alone(
    lengths: list[int],
    num_padding: int,
    heads: tuple[int, int],
    tile: Tile,
    dim: int,
    causal: bool,
    window: int | None,
    dtype: torch.dtype,
) -> None:
    spans = spans_of(lengths, num_padding)
    num_heads, num_kv_heads = heads
    qkv = torch.randn(len(spans.starts), num_heads + 2 * num_kv_heads, dim).to(dtype)
    query, key, value = torch.split(qkv, [num_heads, num_kv_heads, num_kv_heads], dim=1)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gpu_layers, "TILE", tile)
        patched.setattr(gpu_layers, "WIDE_TILE", tile)
        found = attend_spans(query, key, value, spans, scaling=0.3, causal=causal, window=window)

    expected = plain_attention(query, key, value, spans, 0.3, causal, window)
    torch.testing.assert_close(found.double(), expected, atol=CLOSE[dtype], rtol=CLOSE[dtype])
    assert not found[sum(lengths) :].any()


def test_what_lies_in_other_sequences_changes_no_bit() -> None:
    spans = spans_of([30, 50, 9], 7)
    qkv = torch.randn(96, 3, 16)
    other = qkv.clone()
    other[:30], other[80:] = torch.randn(30, 3, 16), torch.randn(16, 3, 16)

    found = [attend_spans(x[:, :1], x[:, 1:2], x[:, 2:], spans, scaling=0.25)[30:80] for x in (qkv, other)]

    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("dim", [16, 24])
@pytest.mark.parametrize("dtype", list(CLOSE))
def test_norms_equal_torchs(dim: int, dtype: torch.dtype) -> None:
    x, residual = (torch.randn(5, dim).to(dtype) * 3 for _ in range(2))
    weight, bias = torch.randn(dim).to(dtype), torch.randn(dim).to(dtype)
    close = CLOSE[dtype]
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), F.rms_norm(x, (dim,), weight, 1e-5), atol=close, rtol=close)
    summed = x.float() + residual.float()
    expected = F.layer_norm(summed, (dim,), weight.float(), bias.float(), 1e-5).to(dtype)
    torch.testing.assert_close(add_layer_norm(x, residual, weight, bias, 1e-5), expected, atol=close, rtol=close)


@pytest.mark.parametrize("width", [16, 24])
def test_a_gate_of_any_width_makes_up_for_the_norm_before_it(width: int) -> None:
    x, gate, up = torch.randn(3, width) * 7, torch.randn(1300, width), torch.randn(1300, width)
    normed = F.rms_norm(x, (width,), eps=1e-5)
    expected = F.silu(normed @ gate.T) * (normed @ up.T)
    torch.testing.assert_close(silu_gate(x @ torch.cat((gate, up)).T, x, 1e-5), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("is_normed", [True, False])
def test_heads_are_normed_and_turned_as_transformers_does(is_normed: bool) -> None:
    from transformers.models.qwen3 import modeling_qwen3

    library: Any = modeling_qwen3  # typed in part
    rows, heads, kv_heads, dim = 5, 9, 3, 12
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * dim)
    angles = torch.randn(rows, dim // 2).repeat(1, 2)
    norms = HeadNorms(torch.randn(dim), torch.randn(dim), 1e-6) if is_normed else None
    query, key, value = torch.split(qkv.view(rows, -1, dim), [heads, kv_heads, kv_heads], dim=1)
    if norms is not None:
        query, key = (F.rms_norm(x, (dim,), w, norms.eps) for x, w in ((query, norms.query), (key, norms.key)))
    turned = library.apply_rotary_pos_emb(query, key, angles.cos(), angles.sin(), unsqueeze_dim=1)
    expected = torch.cat([*turned, value], dim=1).view(rows, -1)

    rotate_heads(qkv, angles.cos(), angles.sin(), num_heads=heads, num_kv_heads=kv_heads, norms=norms)

    torch.testing.assert_close(qkv, expected)
