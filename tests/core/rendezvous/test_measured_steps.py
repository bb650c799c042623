"""What a model measures of its steps when it starts: only where it is given time, and not over ranks."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from sixfold.core.parallel.leader import Leader
from sixfold.core.rendezvous.calls import CallRules, ModuleCall, TensorDigests, capture
from sixfold.core.rendezvous.graphs import RowGraphs
from tests.core.rendezvous.harness import PipelineModel
from tests.core.rendezvous.recorder import Recorder


class Denoiser(torch.nn.Module):
    """Adds one."""

    def forward(self, hidden: Tensor) -> tuple[Tensor]:
        return (hidden + 1,)


class Leaky(torch.nn.Module):
    """Its rows see each other."""

    def forward(self, hidden: Tensor) -> tuple[Tensor]:
        return (hidden + hidden.sum(),)


def call_of(module: torch.nn.Module, rows: int) -> ModuleCall:
    source = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 3, generator=source)
    return capture(module, (hidden,), {}, rules=CallRules(), digests=TensorDigests())


@pytest.fixture
def model() -> Any:
    made = PipelineModel(None, {})
    yield made
    made.close()


def test_steps_of_1_2_4_calls_are_measured_in_the_given_time(model: PipelineModel) -> None:
    model.measure_company(call_of(Denoiser(), 1), max_units=4, max_seconds=60.0)
    assert {step.units for step in model.measured_steps()} >= {1, 2}


def test_without_time_nothing_is_measured_and_nothing_computed(model: PipelineModel) -> None:
    call = call_of(Denoiser(), 1)
    cast(Any, model)._together = None
    model.measure_company(call, max_units=4, max_seconds=0.0)
    assert not model.measured_steps()


def test_over_ranks_nothing_is_measured(model: PipelineModel) -> None:
    """A forward that is too large for one rank alone would leave the others apart from it."""
    cast(Any, model)._parallel = cast(Leader, object())
    cast(Any, model)._together = None
    model.measure_company(call_of(Denoiser(), 1), max_units=4, max_seconds=60.0)
    assert not model.measured_steps()


@pytest.mark.parametrize("module", [Denoiser(), Leaky()])
def test_no_padding_touches_rows_before_their_independence_is_shown(
    model: PipelineModel, module: torch.nn.Module
) -> None:
    recorder = Recorder()
    graphs = RowGraphs(recorder, torch.device("cpu"), (4,))
    graphs.records_at_once = True
    cast(Any, model)._graphs = graphs
    first, second = call_of(module, 1), call_of(module, 2)
    for calls in ([first], [first, second], [first, second]):  # alone; checked; as the check has found
        answers = model.forward(calls)
        for call, answer in zip(calls, answers, strict=True):
            torch.testing.assert_close(answer[0], module(**call.arguments)[0])
    assert recorder.num_recorded == isinstance(module, Denoiser)  # padded from then on
