"""Packed linear layers equal the stock ones in every shape, type and fused form."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sixfold.core.runtime.bf16_matmul import is_fastest
from sixfold.core.runtime.linear import ACTIVATIONS, Activation, PackedLinear, can_pack, pack_linears
from sixfold.core.runtime.step_linear import StepGatedLinear, StepLinear

CPU = torch.device("cpu")
# bfloat16 keeps 8 bits; sums of 48 products of normal values reach 20, and the fused form rounds once less.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.13}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
KINDS = pytest.mark.parametrize("kind", [PackedLinear, StepLinear])


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    torch.default_generator.manual_seed(0)
    with torch.inference_mode():
        yield


def stock(inputs: int, outputs: int, dtype: torch.dtype, bias: bool = True) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias).to(dtype)


def close(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=3),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    kind=st.sampled_from([PackedLinear, StepLinear]),
)
def test_any_leading_shape_and_any_width_equal_the_stock_layer(
    shape: list[int], inputs: int, outputs: int, bias: bool, dtype: torch.dtype, kind: type[PackedLinear]
) -> None:
    linear = stock(inputs, outputs, dtype, bias)
    x = torch.randn(*shape, inputs, dtype=dtype)
    close(kind.from_linear(linear)(x), linear(x))


@KINDS
@DTYPES
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 24, 31, 33, 128, 515])
def test_one_packed_weight_serves_every_row_count(rows: int, dtype: torch.dtype, kind: type[PackedLinear]) -> None:
    linear = stock(96, 160, dtype)
    x = torch.randn(rows, 96, dtype=dtype)
    close(kind.from_linear(linear)(x), linear(x))


@pytest.mark.skipif(not is_fastest(), reason="this CPU's products are oneDNN's")
@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 40), inputs=st.integers(1, 60), outputs=st.integers(1, 100), parts=st.integers(1, 3))
def test_a_row_gets_the_same_bits_whatever_rows_are_beside_it(rows: int, inputs: int, outputs: int, parts: int) -> None:
    packed = StepLinear.from_linear(stock(2 * inputs, outputs, torch.bfloat16))
    x = torch.randn(rows, 2 * inputs, dtype=torch.bfloat16)
    together = packed(x)
    assert torch.equal(torch.cat([packed(part) for part in x.chunk(parts)]), together)
    assert torch.equal(packed(x[-1:]), together[-1:])


@DTYPES
@pytest.mark.parametrize("rows", [1, 13, 200])
def test_a_gated_layer_is_the_product_of_its_two(rows: int, dtype: torch.dtype) -> None:
    gate, up = stock(48, 72, dtype, bias=False), stock(48, 72, dtype, bias=False)
    x = torch.randn(rows, 48, dtype=dtype)
    close(StepGatedLinear(gate, up)(x), F.silu(gate(x)) * up(x))


@DTYPES
@pytest.mark.parametrize("rows", [1, 13, 200])
@pytest.mark.parametrize("outputs", [64, 72])
def test_a_gated_layer_takes_what_is_added_before_its_gate(rows: int, outputs: int, dtype: torch.dtype) -> None:
    gate, up = stock(48, outputs, dtype, bias=False), stock(48, outputs, dtype, bias=False)
    more_gate, more_up = torch.randn(outputs, 4, dtype=dtype), torch.randn(outputs, 4, dtype=dtype)
    x, inner = torch.randn(rows, 48, dtype=dtype), torch.randn(rows, 4, dtype=dtype)
    layer = StepGatedLinear(gate, up)
    added = inner @ layer.join(more_gate, more_up).T
    exact = F.silu((gate(x) + inner @ more_gate.T).float()) * (up(x) + inner @ more_up.T).float()
    close(layer(x, added), exact.to(dtype))
    close(layer(x), F.silu(gate(x)) * up(x))


@KINDS
def test_rows_of_another_width_or_type_are_refused(kind: type[PackedLinear]) -> None:
    packed = kind.from_linear(stock(48, 64, torch.bfloat16))
    for x in (torch.randn(2, 46).bfloat16(), torch.randn(2, 48)):
        with pytest.raises((ValueError, RuntimeError)):
            packed(x)


@KINDS
@DTYPES
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_fused_activations_equal_torchs_own(
    activation: Activation, dtype: torch.dtype, kind: type[PackedLinear]
) -> None:
    linear = stock(48, 64, dtype)
    x = torch.randn(5, 48, dtype=dtype)
    close(kind.from_linear(linear, activation=activation)(x), ACTIVATIONS[activation][2](linear(x)))


@KINDS
@DTYPES
def test_the_residual_is_added_and_not_changed(dtype: torch.dtype, kind: type[PackedLinear]) -> None:
    linear = stock(48, 64, dtype)
    x, residual = torch.randn(2, 7, 48, dtype=dtype), torch.randn(2, 14, 64, dtype=dtype)[:, ::2]
    before = residual.clone()
    close(kind.from_linear(linear)(x, residual), linear(x) + residual)
    assert torch.equal(residual, before)


def test_a_residual_behind_an_activation_is_refused() -> None:
    layer = PackedLinear.from_linear(stock(4, 4, torch.float32), activation="gelu")
    with pytest.raises(ValueError, match="use 'none'"):
        layer(torch.zeros(1, 4), torch.zeros(1, 4))


@KINDS
@DTYPES
def test_strided_inputs_equal_contiguous_ones(dtype: torch.dtype, kind: type[PackedLinear]) -> None:
    layer = kind.from_linear(stock(48, 32, dtype))
    wide = torch.randn(9, 100, dtype=dtype)
    for x in (wide[:, :48], wide[:, :96:2], torch.randn(48, 9, dtype=dtype).T):
        close(layer(x), layer(x.contiguous()))


def test_a_type_that_cannot_be_packed_uses_the_stock_function() -> None:
    linear = stock(8, 4, torch.float64)
    layer = PackedLinear.from_linear(linear, activation="gelu")
    x, residual = torch.randn(3, 8, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    assert not layer.is_packed
    assert torch.equal(layer(x), F.gelu(linear(x)))
    assert torch.equal(PackedLinear.from_linear(linear)(x, residual), linear(x) + residual)


def test_only_the_processors_own_float_types_can_be_packed() -> None:
    assert can_pack(CPU, torch.float32)
    assert not can_pack(CPU, torch.float64)
    assert not can_pack(torch.device("meta"), torch.float32)


class TiedModel(nn.Module):
    """A token table whose weight is also the output head's, and a layer that has two places."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.first = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.again = self.first[0]
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.head(self.again(self.first(self.table(ids))))
        return x


def test_packing_a_tree_keeps_its_results_its_sharing_and_its_tied_table() -> None:
    model = TiedModel()
    ids = torch.tensor([[1, 2, 10]])
    expected, table = model(ids), model.table.weight.clone()
    assert pack_linears(model) == 2
    close(model(ids), expected)
    assert model.again is model.first[0]
    assert torch.equal(model.table.weight, table)
    assert not [m for m in model.modules() if type(m) is nn.Linear]


@pytest.mark.parametrize("skip", ["head", "inner.head"])
def test_layers_are_skipped_by_full_name_or_last_part(skip: str) -> None:
    model = nn.ModuleDict({"inner": TiedModel()})
    assert pack_linears(model, skip=[skip]) == 1
    inner = model["inner"]
    assert isinstance(inner, TiedModel)
    assert type(inner.head) is nn.Linear


def test_packing_converts_the_layers_to_the_type_that_was_asked() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    pack_linears(model, dtype=torch.bfloat16)
    assert model(torch.zeros(1, 4, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_the_unpacked_weight_is_let_go() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    weight = weakref.ref(model[0].weight)
    pack_linears(model)
    gc.collect()
    assert weight() is None
    packed = model[0]
    assert isinstance(packed, PackedLinear)
    assert packed.num_parameters == 64 * 65
    assert packed.num_bytes == 64 * 65 * 4


def test_subclasses_of_the_stock_layer_are_left_alone() -> None:
    class Adapted(nn.Linear):
        pass

    assert pack_linears(nn.Sequential(Adapted(2, 2))) == 0


@KINDS
@DTYPES
def test_the_factor_is_multiplied_and_not_changed(dtype: torch.dtype, kind: type[PackedLinear]) -> None:
    linear = stock(48, 64, dtype)
    x, factor = torch.randn(7, 48, dtype=dtype), torch.randn(7, 64, dtype=dtype)
    before = factor.clone()
    close(kind.from_linear(linear)(x, factor=factor), linear(x) * factor)
    assert torch.equal(factor, before)
    with pytest.raises(ValueError, match="only one"):
        kind.from_linear(linear)(x, factor, factor=factor)
