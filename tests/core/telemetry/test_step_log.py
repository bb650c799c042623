"""A traced request's steps are told whole and in bounded room, however many they are."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sixfold.core.batching.step_log import StepLog
from sixfold.core.errors import DeadlineExceeded
from sixfold.core.messages import Failed, Finished, StepGroup
from tests.core.batching.loop_harness import LoopHarness
from tests.fakes import FakeStepModel, FakeWork, one_sequence


@given(st.lists(st.integers(1, 64), max_size=2_000))
def test_no_step_and_no_work_is_lost_in_at_most_32_groups(units: list[int]) -> None:
    log = StepLog()
    for number, work in enumerate(units):
        log.add(StepGroup(began_s=float(number), ended_s=number + 1.0, units=work, max_batch_sequences=work))
    groups = log.groups
    assert len(groups) <= 32
    assert sum(group.num_steps for group in groups) == len(units)
    assert sum(group.units for group in groups) == sum(units)
    assert max((group.max_batch_sequences for group in groups), default=0) == max(units, default=0)
    for earlier, later in itertools.pairwise(groups):
        assert earlier.ended_s == later.began_s
        assert later.num_steps <= earlier.num_steps


def test_the_first_steps_stay_apart() -> None:
    log = StepLog()
    for number in range(32):
        log.add(StepGroup(began_s=float(number), ended_s=number + 1.0, units=1, max_batch_sequences=1))
    assert [group.num_steps for group in log.groups] == [1] * 32


def test_a_traced_request_tells_its_stages_by_the_clock_of_its_replica() -> None:
    harness = LoopHarness(FakeStepModel(fixed_s=0.01, unit_s=0.001))
    harness.submit("r", one_sequence(FakeWork(divisible_units=4, num_steps=3)), prepare=False, trace_id="0" * 32)
    harness.loop.run_once()
    harness.clock.advance(0.5)
    harness.prepare_piece("r")
    while not harness.loop.idle or harness.loop.inbox:
        harness.loop.run_once()
    last = harness.events["r"][-1]
    assert isinstance(last, Finished)
    trace = last.trace
    assert trace is not None and trace.ready_s is not None and trace.first_step_s is not None
    assert trace.ready_s == trace.first_step_s == 0.5
    assert trace.first_output_s is not None and trace.last_step_s is not None
    assert 0.5 < trace.first_output_s < trace.last_step_s == trace.steps[-1].ended_s
    assert sum(group.num_steps for group in trace.steps) == last.timing.num_steps
    assert sum(group.units for group in trace.steps) == 7


def test_a_traced_request_that_fails_tells_how_far_it_came() -> None:
    harness = LoopHarness(FakeStepModel())
    work = one_sequence(FakeWork(num_steps=1000))
    harness.submit("r", work, deadline_s=harness.clock() + 0.1, trace_id="0" * 32)
    while harness.loop.inbox or not harness.loop.idle:
        harness.loop.run_once()
    last = harness.events["r"][-1]
    assert isinstance(last, Failed) and isinstance(last.error, DeadlineExceeded)
    assert last.trace is not None and last.trace.last_step_s is not None
    assert len(last.trace.steps) == sum(group.num_steps for group in last.trace.steps) > 1


def test_a_request_that_is_not_traced_keeps_nothing_of_its_steps() -> None:
    harness = LoopHarness(FakeStepModel())
    harness.submit("r", one_sequence(FakeWork(num_steps=3)))
    while harness.loop.inbox or not harness.loop.idle:
        harness.loop.run_once()
    last = harness.events["r"][-1]
    assert isinstance(last, Finished) and last.trace is None
