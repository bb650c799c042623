"""The fp8 layer computes with numbers rounded by row and channel, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5LayerFF

from sixfold.core.runtime.fp8_linear import Fp8Linear, can_hold, from_linear, quantize_rows


def stock(bias: bool = True) -> nn.Linear:
    linear = nn.Linear(64, 48, bias=bias)
    for parameter in linear.parameters():
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    return linear.to(torch.bfloat16)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)


def relative(found: Any, expected: Any) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def exact(layer: Fp8Linear, inputs: Tensor) -> Tensor:
    """The product of the rounded numbers in float32."""
    values, scale = quantize_rows(inputs)
    product = functional.linear(values.float() * scale, layer.rounded.float() * layer.weight_scale.T)
    return product if layer.bias is None else product + layer.bias.float()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64,), (7, 64), (2, 3, 64)])
def test_the_product_is_that_of_the_rounded_numbers(bias: bool, shape: tuple[int, ...]) -> None:
    layer, inputs = from_linear(stock(bias)), drawn(*shape)
    found = layer(inputs)
    assert found.shape == (*shape[:-1], 48)
    assert found.dtype == torch.bfloat16
    assert relative(found.reshape(-1, 48), exact(layer, inputs.reshape(-1, 64))) < 5e-3


@torch.no_grad()
def test_rounding_moves_the_answer_by_a_few_percent_however_rows_differ_in_size() -> None:
    linear = stock()
    inputs = drawn(16, 64) * torch.logspace(-4, 4, 16)[:, None].to(torch.bfloat16)
    found, expected = from_linear(linear)(inputs), linear(inputs)
    assert all(relative(one, other) < 0.06 for one, other in zip(found, expected, strict=True))


def test_a_row_of_zeros_stays_zero() -> None:
    values, scale = quantize_rows(torch.zeros(2, 16))
    assert not values.float().any()
    assert torch.isfinite(scale).all()


def test_sizes_that_the_matrix_units_cannot_take_are_refused() -> None:
    assert not can_hold(nn.Linear(60, 48))
    with pytest.raises(ValueError, match="multiples of 16"):
        from_linear(nn.Linear(60, 48))


@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
@pytest.mark.parametrize("type_of_wo", [torch.bfloat16, torch.float32])
@torch.no_grad()
def test_a_module_that_casts_its_inputs_to_the_type_of_the_weight_computes_the_same(
    activation: str, type_of_wo: torch.dtype
) -> None:
    config = T5Config(d_model=64, d_ff=128, feed_forward_proj=activation, dropout_rate=0.0)
    block: Any = T5LayerFF(config).DenseReluDense.eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in block.parameters():
        # So small that what is between the products is below what fp8 holds without a scale.
        nn.init.normal_(parameter, std=0.002, generator=generator)
    block.to(torch.bfloat16).wo.to(type_of_wo)  # which T5 keeps in float32
    inputs = torch.randn(5, 64, dtype=torch.bfloat16, generator=generator)
    expected = block(inputs)
    for name, linear in list(block.named_children()):
        if isinstance(linear, nn.Linear):
            setattr(block, name, from_linear(linear))
    found = block(inputs)
    assert found.dtype == expected.dtype
    assert relative(found, expected) < 0.1
