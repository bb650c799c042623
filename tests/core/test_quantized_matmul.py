"""Products with weights of 8 and 4 bits, against what they stand for in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sixfold.core.runtime.quantized_linear import ByteScheme, QuantizedLinear, can_quantize
from sixfold.core.runtime.quantized_matmul import Bits, QuantizedWeight, has_byte_products, quantize_groups

pytestmark = pytest.mark.skipif(not has_byte_products(), reason="this CPU has no AVX512-VNNI or -BF16")

SCHEMES = [ByteScheme(num_bits=bits, keeps_inputs=keeps) for bits in (8, 4) for keeps in (True, False)]
# The result is rounded to bfloat16; inputs of 8 bits cost as much again in every product.
TOLERANCE = {True: 0.004, False: 0.02}


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    torch.default_generator.manual_seed(0)
    with torch.inference_mode():
        yield


def stands_for(weight: Tensor, num_bits: Bits) -> Tensor:
    """What a weight is after quantization, in float64."""
    columns = weight.shape[1]
    groups = F.pad(weight.float(), (0, -columns % 32)).view(len(weight), -1, 32)
    scale, offset, numbers = quantize_groups(groups, num_bits)
    return (numbers * scale.double()[..., None] + offset.double()[..., None]).flatten(1)[:, :columns]


def distance(actual: Tensor, expected: Tensor) -> float:
    error = (actual.double() - expected).square().sum().sqrt()
    return float(error / expected.square().sum().sqrt())


def rows_of(num_rows: int, dim: int) -> Tensor:
    return torch.randn(num_rows, dim).bfloat16()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 30),
    inputs=st.integers(1, 90),
    outputs=st.integers(1, 100),
    bias=st.booleans(),
    scheme=st.sampled_from(SCHEMES),
)
def test_products_of_any_shape_equal_those_of_the_weights_that_the_numbers_stand_for(
    rows: int, inputs: int, outputs: int, bias: bool, scheme: ByteScheme
) -> None:
    linear = nn.Linear(2 * inputs, outputs, bias=bias).bfloat16()
    x = rows_of(rows, 2 * inputs)
    expected = F.linear(x.double(), stands_for(linear.weight, scheme.num_bits), linear.bias.double() if bias else None)
    found = QuantizedLinear.from_linears([linear], scheme)(x)
    error = (found.double() - expected).abs().max()
    assert error <= TOLERANCE[scheme.keeps_inputs] * float(x.double().square().sum(dim=1).amax().sqrt()) * 2 + 0.01


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_large_product_is_as_near_as_its_inputs_allow(scheme: ByteScheme) -> None:
    weight = torch.randn(160, 576).bfloat16()
    x = rows_of(25, 576)
    found = QuantizedWeight(weight, None, num_bits=scheme.num_bits, keeps_inputs=scheme.keeps_inputs).multiply(x)
    error = distance(found, x.double() @ stands_for(weight, scheme.num_bits).T)
    assert error < (0.0025 if scheme.keeps_inputs else 0.01)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 30),
    inputs=st.integers(1, 60),
    outputs=st.integers(1, 70),
    parts=st.integers(1, 3),
    scheme=st.sampled_from(SCHEMES),
)
def test_a_row_gets_the_same_bits_whatever_rows_are_beside_it(
    rows: int, inputs: int, outputs: int, parts: int, scheme: ByteScheme
) -> None:
    packed = QuantizedLinear.from_linears([nn.Linear(2 * inputs, outputs).bfloat16()], scheme)
    x = rows_of(rows, 2 * inputs)
    together = packed(x)
    assert torch.equal(torch.cat([packed(part) for part in x.chunk(parts)]), together)
    assert torch.equal(packed(x[-1:]), together[-1:])


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("rows", [1, 7, 130])
def test_a_gate_a_residual_and_float32_rows_are_as_in_stock_layers(rows: int, scheme: ByteScheme) -> None:
    gate, up = (nn.Linear(64, 72, bias=False).bfloat16() for _ in range(2))
    x, residual = rows_of(rows, 64), rows_of(rows, 72)
    weights = [stands_for(linear.weight, scheme.num_bits) for linear in (gate, up)]
    products = [x.double() @ weight.T for weight in weights]
    gated = QuantizedLinear(up.weight, None, scheme, gate=gate.weight)(x)
    assert distance(gated, F.silu(products[0]) * products[1]) < 5 * TOLERANCE[scheme.keeps_inputs]
    layer = QuantizedLinear(up.weight, None, scheme, gate=gate.weight)
    inner, sides = rows_of(rows, 32), [torch.randn(72, 32).bfloat16() for _ in range(2)]
    beside = F.linear(inner, layer.join(*sides))
    opened, closed = (p + inner.double() @ side.double().T for p, side in zip(products, sides, strict=True))
    for inputs in (x, x.float()):
        found = layer(inputs, beside.to(inputs.dtype))
        assert distance(found, F.silu(opened) * closed) < 5 * TOLERANCE[scheme.keeps_inputs]
    before = residual.clone()
    added = QuantizedLinear.from_linears([up], scheme)(x, residual)
    assert distance(added, products[1] + residual.double()) < TOLERANCE[scheme.keeps_inputs]
    assert torch.equal(residual, before)
    wide = QuantizedLinear.from_linears([up], scheme)(x.float(), residual.float())
    assert wide.dtype is torch.float32
    assert distance(wide, products[1] + residual.double()) < TOLERANCE[scheme.keeps_inputs]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_several_layers_of_one_input_become_one(scheme: ByteScheme) -> None:
    linears = [nn.Linear(48, width).bfloat16() for width in (32, 17, 40)]
    x = rows_of(3, 48)
    together = QuantizedLinear.from_linears(linears, scheme)(x)
    apart = [QuantizedLinear.from_linears([linear], scheme)(x) for linear in linears]
    assert torch.equal(together, torch.cat(apart, dim=-1))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_what_is_no_number_stays_in_its_row(scheme: ByteScheme) -> None:
    packed = QuantizedLinear.from_linears([nn.Linear(64, 32).bfloat16()], scheme)
    x = rows_of(3, 64)
    clean = packed(x)
    x[1, 40] = torch.nan
    found = packed(x)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], clean[[0, 2]])
    x[1, 40] = torch.inf
    assert not packed(x)[1].isfinite().any()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_zeros_and_the_largest_numbers_are_kept(scheme: ByteScheme) -> None:
    weight = torch.zeros(32, 64).bfloat16()
    weight[:, :32] = 3.0
    packed = QuantizedWeight(weight, None, num_bits=scheme.num_bits, keeps_inputs=scheme.keeps_inputs)
    assert torch.equal(packed.multiply(torch.zeros(2, 64).bfloat16()), torch.zeros(2, 32).bfloat16())
    assert distance(packed.multiply(torch.ones(2, 64).bfloat16()), torch.full((2, 32), 96.0).double()) < 0.01
    assert not packed.multiply(torch.full((1, 64), 1e36).bfloat16()).isnan().any()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=32, max_size=32), st.sampled_from([8, 4]))
def test_a_number_is_at_most_half_a_step_away_from_what_it_was(values: list[float], num_bits: Bits) -> None:
    group = torch.tensor(values)
    scale, offset, numbers = quantize_groups(group[None], num_bits)
    error = (numbers * scale.double() + offset.double() - group.double()).abs().max()
    # Offsets are bfloat16, too: their own error is at most 2^-9 of them.
    assert error <= 0.5001 * float(scale) + 2.0**-8 * abs(float(offset)) + 1e-30


def test_numbers_on_the_grid_of_4_bits_are_kept_as_they_are() -> None:
    numbers = torch.randint(0, 16, (20, 32))
    numbers[:, 0], numbers[:, 1] = 0, 15
    scale, offset, found = quantize_groups(numbers * 0.5 - 3.0, 4)
    assert torch.equal(found, numbers.int())
    assert (scale == 0.5).all()
    assert (offset == -3.0).all()


def test_rows_of_another_width_or_type_are_refused() -> None:
    packed = QuantizedWeight(torch.randn(32, 48), None, num_bits=8, keeps_inputs=True)
    for x in (torch.randn(2, 46).bfloat16(), torch.randn(2, 48)):
        with pytest.raises(ValueError, match="is not"):
            packed.multiply(x)


def test_no_rows_give_no_rows() -> None:
    packed = QuantizedLinear.from_linears([nn.Linear(48, 64).bfloat16()], SCHEMES[0])
    assert packed(torch.zeros(2, 0, 48).bfloat16()).shape == (2, 0, 64)


def test_only_layers_that_fit_the_kernels_are_taken() -> None:
    assert can_quantize(nn.Linear(48, 64))
    assert can_quantize(nn.Linear(48, 64).bfloat16())
    assert not can_quantize(nn.Linear(47, 64))
    assert not can_quantize(nn.Linear(48, 64).half())
    assert not can_quantize(nn.Linear(48, 64, device="meta"))
