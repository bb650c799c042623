"""What stands in a measurement for a kernel of this project computes the same."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sixfold.core.runtime import gpu_layers

GPU = Path(__file__).resolve().parents[2] / "bench" / "gpu"
ROWS, HEADS, KV_HEADS, DIM = 7, 4, 2, 16


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(GPU), *sys.path])
    return importlib.import_module("alone_embedding")


@pytest.mark.parametrize("is_normed", [False, True])
def test_rotation(bench: Any, is_normed: bool) -> None:
    source = torch.Generator().manual_seed(0)
    qkv = torch.randn(ROWS, (HEADS + 2 * KV_HEADS) * DIM, generator=source)
    angles = torch.rand(ROWS, DIM // 2, generator=source).repeat(1, 2)
    query, key = torch.rand(2, DIM, generator=source)
    norms = gpu_layers.HeadNorms(query, key, 1e-6) if is_normed else None
    expected = qkv.clone()
    sizes: dict[str, Any] = {"num_heads": HEADS, "num_kv_heads": KV_HEADS, "norms": norms}
    gpu_layers.rotate_heads(expected, angles.cos(), angles.sin(), **sizes)
    bench.STANDS["rotation"]["rotate_heads"](qkv, angles.cos(), angles.sin(), **sizes)
    torch.testing.assert_close(qkv, expected)


def test_gate(bench: Any) -> None:
    source = torch.Generator().manual_seed(0)
    opened, x = torch.randn(ROWS, 2 * 24, generator=source), torch.randn(ROWS, DIM, generator=source)
    expected = gpu_layers.silu_gate(opened, x, 1e-6)
    torch.testing.assert_close(bench.STANDS["gate"]["silu_gate"](opened, x, 1e-6), expected)


def test_norms(bench: Any) -> None:
    source = torch.Generator().manual_seed(0)
    x, residual = torch.randn(2, ROWS, DIM, generator=source)
    weight, bias = torch.randn(2, DIM, generator=source)
    stands = bench.STANDS["norm"]
    torch.testing.assert_close(stands["rms_norm"](x, weight, 1e-6), gpu_layers.rms_norm(x, weight, 1e-6))
    expected = gpu_layers.add_layer_norm(x, residual, weight, bias, 1e-6)
    torch.testing.assert_close(stands["add_layer_norm"](x, residual, weight, bias, 1e-6), expected)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_a_batch_that_is_sorted_by_length(bench: Any, causal: bool) -> None:
    source = torch.Generator().manual_seed(0)
    query = torch.randn(ROWS, HEADS, DIM, generator=source)
    key, value = torch.randn(2, ROWS, KV_HEADS, DIM, generator=source)
    starts, ends = torch.tensor([0, 0, 2, 2, 2, 2, 2]), torch.tensor([2, 2, 7, 7, 7, 7, 7])
    spans = gpu_layers.Spans(starts, ends)
    expected = gpu_layers.attend_spans(query, key, value, spans, scaling=0.3, causal=causal)
    stand = bench.FlashByLengths([5, 2], "cpu")
    torch.testing.assert_close(stand(query, key, value, spans, scaling=0.3, causal=causal), expected)


def test_other_functions_stand_in_a_module_only_inside(bench: Any) -> None:
    own = gpu_layers.silu_gate
    with pytest.raises(KeyError), bench.standing(gpu_layers, {"silu_gate": min}):
        assert gpu_layers.silu_gate is min
        raise KeyError
    assert gpu_layers.silu_gate is own
