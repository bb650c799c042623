"""Fused bfloat16 layers compute what the stock model computes, row by row, whoever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sixfold.core.runtime.kernels import rms_norm
from sixfold.plugins.llm.fused_layer import FusedLayer
from sixfold.plugins.llm.kernels import attend
from sixfold.plugins.llm.rows import AttentionRows

FUSED = ("llama", "qwen2", "qwen3", "mistral")
# (block size, head dim): whatever the CPU has, the first is for the portable kernel, the others for products of pairs.
SHAPES = ((4, 8), (16, 64), (32, 96))


def stock_logits(folder: Path, prompts: list[list[int]], dtype: torch.dtype) -> Tensor:
    models: Any = transformers.AutoModelForCausalLM  # typed in part
    model = models.from_pretrained(folder, dtype=dtype).eval()
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor(prompts)).logits[:, -1].float()
    return logits


def relative(found: Tensor, expected: Tensor) -> float:
    return float(((found.float() - expected).square().sum() / expected.square().sum()).sqrt())


@pytest.mark.parametrize("name", FUSED)
def test_logits_are_as_near_to_float32_as_those_of_the_stock_model_in_bfloat16(
    name: str, model_folder: Callable[[str], Path], load_tiny: Callable[..., Any]
) -> None:
    folder = model_folder(name)
    decoder: Any = load_tiny(folder, dtype="bfloat16")._decoder
    assert any(isinstance(module, FusedLayer) for module in decoder._model.modules())
    prompts = np.random.default_rng(0).integers(0, 250, (24, 60)).tolist()
    exact = stock_logits(folder, prompts, torch.float32)
    allowed = 1.2 * relative(stock_logits(folder, prompts, torch.bfloat16), exact)
    for chunks in ([60], [30, 20, 10], [57, 1, 1, 1]):
        assert relative(decoder.run(prompts, chunks), exact) < allowed


def test_a_sequence_gets_the_same_bits_alone_and_in_a_batch(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any]
) -> None:
    decoder: Any = load_tiny(model_folder("llama"), dtype="bfloat16")._decoder
    prompts = np.random.default_rng(1).integers(0, 250, (5, 23)).tolist()
    together = decoder.run(prompts, [20, 1, 1, 1])
    for row, prompt in enumerate(prompts):
        assert torch.equal(decoder.run([prompt], [20, 1, 1, 1])[0], together[row])


def test_layers_that_only_look_alike_are_left_to_the_stock_code(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any]
) -> None:
    for name in ("mistral-sliding", "gemma", "mixtral", "phi3"):
        model: nn.Module = load_tiny(model_folder(name), dtype="bfloat16")._decoder._model
        assert not any(isinstance(module, FusedLayer) for module in model.modules())


def attention(query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    shared = query.shape[0] // keys.shape[0]
    keys, values = keys.repeat_interleave(shared, 0), values.repeat_interleave(shared, 0)
    return (torch.softmax((keys @ query[:, :, None])[..., 0] * scaling, -1)[:, None] @ values)[:, 0]


def rows_of(table: Tensor, lengths: list[int], rows: list[int] | None = None) -> AttentionRows:
    return AttentionRows(
        rows=np.array(range(len(lengths)) if rows is None else rows),
        sequences=np.arange(len(lengths)),
        lengths=np.array(lengths),
        tables=table.numpy(),
        num_tokens=sum(lengths),
    )


@settings(deadline=None, max_examples=80)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    heads=st.sampled_from([(1, 1), (2, 1), (6, 2)]),
    shape=st.sampled_from(SHAPES),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
    seed=st.integers(0, 100),
)
def test_attention_equals_the_formula_over_scattered_blocks_to_the_bit_alone_and_together(
    lengths: list[int], heads: tuple[int, int], shape: tuple[int, int], scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    num_heads, num_kv_heads = heads
    block, dim = shape
    width = -(-max(lengths) // block)
    table = torch.randperm(len(lengths) * width, generator=generator).view(len(lengths), width)
    cache = torch.randn(len(lengths) * width, 2, num_kv_heads, block, dim, generator=generator).bfloat16()
    qkv = (torch.randn(len(lengths), (num_heads + 2 * num_kv_heads) * dim, generator=generator) * scale).bfloat16()
    result = torch.full((len(lengths), num_heads * dim), float("nan"), dtype=torch.bfloat16)
    attend(qkv, cache, rows_of(table, lengths), 0.2, result)
    for row, length in enumerate(lengths):
        context = cache[table[row]].permute(1, 2, 0, 3, 4).reshape(2, num_kv_heads, -1, dim)[:, :, :length].float()
        query = qkv[row].float().view(-1, dim)[:num_heads]
        expected = attention(query, context[0], context[1], 0.2)
        torch.testing.assert_close(result[row].float().view(num_heads, dim), expected, rtol=1e-2, atol=1e-2)
    alone = torch.full_like(result, float("nan"))
    for row in range(len(lengths)):
        attend(qkv, cache, rows_of(table, lengths, [row]), 0.2, alone)
    assert torch.equal(alone, result)


@pytest.mark.parametrize("shape", SHAPES)
def test_not_a_number_stays_in_its_row(shape: tuple[int, int]) -> None:
    block, dim = shape
    cache = torch.randn(2, 2, 1, block, dim).bfloat16()
    cache[1, 0, 0, 2] = float("nan")
    result = torch.zeros(2, dim, dtype=torch.bfloat16)
    rows = rows_of(torch.tensor([[0], [1]]), [block, block])
    attend(torch.randn(2, 3 * dim).bfloat16(), cache, rows, 1.0, result)
    assert torch.isfinite(result[0]).all()
    assert torch.isnan(result[1]).all()


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 40), dim=st.sampled_from([8, 96, 576]), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_the_rms_norm_rounds_once(rows: int, dim: int, scale: float) -> None:
    x, weight = (torch.randn(rows, dim) * scale).bfloat16(), torch.rand(dim) + 0.5
    expected = torch.rms_norm(x.float(), (dim,), weight, 1e-6)
    torch.testing.assert_close(rms_norm(x, weight, 1e-6).float(), expected, rtol=2**-8, atol=1e-6)
