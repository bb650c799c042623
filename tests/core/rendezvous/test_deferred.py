from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sixfold.core.rendezvous.calls import CallRules, ModuleCall, TensorDigests, capture
from sixfold.core.rendezvous.deferred import DeferredCalls


class Scale(torch.nn.Module):
    def forward(self, hidden: Tensor, timestep: Tensor, return_dict: bool = True) -> Any:
        return (hidden * timestep[:, None],)


class Computed:
    """Computes calls and keeps how many rows each forward had."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.module = Scale()
        self.calls = DeferredCalls(self._compute)

    def _compute(self, call: ModuleCall) -> Any:
        self.rows.append(call.rows)
        return call.function(**call.arguments)

    def call(self, hidden: Tensor, time: float) -> Any:
        arguments = {"hidden": hidden, "timestep": torch.tensor([time]), "return_dict": False}
        return self.calls.add(capture(self.module, (), arguments, rules=CallRules(), digests=TensorDigests()))


def test_two_branches_of_guidance_share_a_forward_and_give_what_they_give_alone() -> None:
    computed = Computed()
    one, other = torch.randn(1, 4), torch.randn(1, 4)
    with_prompt = computed.call(one, 3.0)[0]
    without = computed.call(other, 3.0)[0]
    guided = without + 4.0 * (with_prompt - without)
    assert computed.rows == [2]
    torch.testing.assert_close(guided, other * 3 + 4 * (one * 3 - other * 3))


def test_an_answer_that_is_touched_at_once_is_computed_at_once() -> None:
    computed = Computed()
    hidden = torch.randn(1, 4)
    first = computed.call(hidden, 2.0)[0].float()
    second = computed.call(hidden, 2.0)[0]
    assert torch.equal(first, hidden * 2) and torch.equal(torch.cat([second, second])[:1], first)
    assert computed.rows == [1, 1]


def test_calls_that_can_not_share_a_forward_are_computed_apart() -> None:
    computed = Computed()
    short, long = computed.call(torch.ones(1, 3), 2.0), computed.call(torch.ones(1, 5), 2.0)
    assert (len(long), long[0].shape, short[0].shape) == (1, (1, 5), (1, 3))
    assert computed.rows == [1, 1]


def test_a_deferred_tensor_is_one_to_pipelines_and_to_torch() -> None:
    computed = Computed()
    hidden = torch.arange(4.0).reshape(1, 4)
    answer = computed.call(hidden, 2.0)
    assert isinstance(answer, tuple) and isinstance(answer[0], torch.Tensor) and torch.is_tensor(answer[0])
    assert computed.rows == []
    tensor = answer[0]
    assert torch.equal(1.0 - tensor, 1.0 - hidden * 2)
    assert torch.equal(hidden + tensor, hidden * 3)
    assert torch.equal(torch.stack([tensor, hidden]), torch.stack([hidden * 2, hidden]))
    assert torch.equal(tensor[:, 1:], hidden[:, 1:] * 2) and torch.equal(-tensor, -hidden * 2)
    assert tensor.dtype is torch.float32 and tensor.chunk(2)[0].shape == (1, 4)


def test_a_long_row_of_untouched_calls_is_computed_before_it_grows() -> None:
    computed = Computed()
    for _ in range(5):
        computed.call(torch.ones(1, 3), 2.0)
    assert computed.rows == [4]
