"""Quantizing modules in place: by this project's kernels where they run, else by torchao."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sixfold.core.errors import ConfigError
from sixfold.core.runtime.linear import is_stock_linear, pack_linears
from sixfold.core.runtime.quantization.apply import apply_plan, linear_shapes
from sixfold.core.runtime.quantization.component import Component
from sixfold.core.runtime.quantization.hardware import Hardware
from sixfold.core.runtime.quantization.methods import LINEAR_METHODS
from sixfold.core.runtime.quantization.modules import held_bytes, quantize_loaded
from sixfold.core.runtime.quantization.plan import plan
from sixfold.core.runtime.quantization.policy import QuantizationPolicy, patterns
from sixfold.core.runtime.quantized_linear import QuantizedLinear
from sixfold.core.runtime.quantized_matmul import has_byte_products

kernels = pytest.mark.skipif(not has_byte_products(), reason="this CPU has no AVX512-VNNI or -BF16")


class Tower(nn.Module):
    """Four linear layers, one of them in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embedder = nn.Linear(32, 64)
        self.blocks = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64, bias=False)])
        self.again = self.blocks[0]
        self.head = nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedder(x)
        for block in (*self.blocks, self.again):
            x = x + block(x)
        result: torch.Tensor = self.head(x)
        return result


def tower(dtype: torch.dtype = torch.float32) -> Tower:
    torch.default_generator.manual_seed(0)
    return Tower().to(dtype).eval().requires_grad_(False)


def quantize(module: nn.Module, **policy: Any) -> str:
    parts = {"tower": Component(module=module, defaults=patterns("embedder"))}
    chosen = QuantizationPolicy.model_validate({"scheme": "int8", **policy})
    return quantize_loaded(parts, chosen, LINEAR_METHODS, place="models.m.quantization")


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_results_stay_near_and_memory_shrinks(scheme: str, dtype: torch.dtype) -> None:
    stock, changed = tower(dtype), tower(dtype)
    before = held_bytes(changed)
    assert quantize(changed, scheme=scheme) == f"{scheme} weights: 3 of 4 layers"
    x = torch.randn(5, 32, dtype=dtype)
    with torch.inference_mode():
        expected, found = stock(x), changed(x)
    assert found.dtype is dtype
    assert (found - expected).norm() / expected.norm() < (0.02 if scheme == "int8" else 0.12)
    assert held_bytes(changed) < 0.75 * before


@kernels
def test_a_layer_of_two_places_stays_one_and_skipped_ones_stay_stock() -> None:
    module = tower()
    quantize(module, skip=["head"])
    assert isinstance(module.again, QuantizedLinear)
    assert module.again is module.blocks[0]
    assert type(module.head) is nn.Linear
    assert isinstance(module.embedder, QuantizedLinear)  # a list of one's own replaces the defaults


def test_no_policy_changes_nothing() -> None:
    module = tower()
    parts = {"tower": Component(module=module)}
    assert quantize_loaded(parts, None, LINEAR_METHODS, place="x") == ""
    assert all(type(layer) is nn.Linear for layer in module.blocks)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"skip": ["blocks", "head", "defaults"]}, "nothing is left to quantize"),
        ({"skip": ["haed"]}, "quantization.skip: 'haed' fits no linear layer"),
        ({"components": {"towr": None}}, "components.towr: the model has no such part. Did you mean 'tower'"),
        ({"components": {"tower": {"skip": ["haed"]}}}, "components.tower.skip: 'haed' fits no linear layer"),
        ({"scheme": "nvfp4", "what": "weights+activations"}, "needs a GPU of compute capability 10.0"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused_and_changes_nothing(policy: dict[str, Any], message: str) -> None:
    module = tower()
    with pytest.raises(ConfigError) as caught:
        quantize(module, **policy)
    assert message in str(caught.value)
    assert all(is_stock_linear(layer) for layer in (*module.blocks, module.head, module.embedder))


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_torchao_takes_what_the_kernels_do_not(scheme: str) -> None:
    pytest.importorskip("torchao")
    stock, changed = tower(), tower()
    before = held_bytes(changed)
    policy = QuantizationPolicy.model_validate({"scheme": scheme, "skip": ["head"]})
    hardware = Hardware(kind="cpu")  # as on a CPU without the instructions
    apply_plan(changed, plan(linear_shapes(changed), policy), hardware=hardware, place="x")
    with torch.inference_mode():
        x = torch.randn(5, 32)
        expected, found = stock(x), changed(x)
    assert 0 < (found - expected).norm() / expected.norm() < (0.02 if scheme == "int8" else 0.06)
    assert held_bytes(changed) < 0.6 * before
    assert not is_stock_linear(changed.blocks[0])
    assert pack_linears(changed) == 1  # the head alone: quantized layers are left as they are


def test_without_torchao_the_command_that_brings_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none(_name: str) -> None:
        return None

    monkeypatch.setattr("importlib.util.find_spec", find_none)
    module = tower()
    policy = QuantizationPolicy.model_validate({"scheme": "fp8", "skip": []})
    with pytest.raises(ConfigError, match=r"fp8 weights needs torchao here.*pip install 'sixfold\[quantization\]'"):
        apply_plan(module, plan(linear_shapes(module), policy), hardware=Hardware(kind="cpu"), place="x")
    with pytest.raises(ConfigError, match=r"needs numba.*pip install 'sixfold\[quantization\]'"):
        quantize(module)
