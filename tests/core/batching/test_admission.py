"""Admission is bounded in cost, answers at once, and its Retry-After follows the measured drain rate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.core.batching.admission import Admission
from sixfold.core.batching.model import StepRange
from sixfold.core.errors import QueueFull
from tests.core.batching.loop_harness import LoopHarness
from tests.fakes import FakeStepModel, FakeWork, many_sequences, one_sequence


def test_the_bound_is_in_units_not_in_requests() -> None:
    admission = Admission(100)
    for _ in range(50):
        admission.admit(2)
    with pytest.raises(QueueFull):
        admission.admit(1)


def test_a_request_over_the_bound_is_admitted_only_alone() -> None:
    admission = Admission(100)
    ticket = admission.admit(1)
    with pytest.raises(QueueFull):
        admission.admit(101)
    admission.leave(ticket)
    admission.admit(101)


def test_leaving_gives_back_what_was_not_done() -> None:
    admission = Admission(100)
    ticket = admission.admit(60)
    admission.consume([(ticket, 20)])
    assert admission.queued_units == 40
    admission.leave(ticket)
    assert (admission.queued_units, admission.num_requests) == (0, 0)


def test_more_work_than_was_estimated_is_never_counted_below_zero() -> None:
    admission = Admission(100)
    ticket = admission.admit(10)
    admission.consume([(ticket, 25)])
    assert admission.queued_units == 0
    admission.leave(ticket)
    assert admission.queued_units == 0


def test_before_the_first_step_retry_after_is_a_second() -> None:
    admission = Admission(10)
    admission.admit(10)
    with pytest.raises(QueueFull) as caught:
        admission.admit(1)
    assert caught.value.retry_after_s == 1.0


@given(steps=st.lists(st.tuples(st.integers(1, 1000), st.floats(0.001, 5.0)), min_size=1, max_size=50))
def test_the_drain_rate_lies_between_the_slowest_and_the_fastest_step(steps: list[tuple[int, float]]) -> None:
    admission = Admission(10)
    for units, seconds in steps:
        admission.observe_step(units, seconds)
    rates = [units / seconds for units, seconds in steps]
    assert min(rates) * 0.999 <= admission.units_per_s <= max(rates) * 1.001


def test_the_drain_rate_follows_a_device_that_became_slower() -> None:
    admission = Admission(10)
    for _ in range(1000):
        admission.observe_step(100, 0.1)
    for _ in range(300):
        admission.observe_step(10, 0.1)
    assert admission.units_per_s == pytest.approx(100.0, rel=0.5)


@pytest.mark.parametrize("wanted_units", [5, 50, 400])
def test_after_retry_after_there_is_room_and_not_much_earlier(wanted_units: int) -> None:
    model = FakeStepModel(step_range=StepRange(min_units=1, initial_units=16, max_units=16))
    harness = LoopHarness(model, max_queue_units=1000)
    for index in range(100):
        harness.submit(f"r{index}", many_sequences(FakeWork(num_steps=2), 5))
    harness.run(20)
    filler = 1000 - harness.admission.queued_units
    harness.submit("filler", many_sequences(FakeWork(), filler))
    with pytest.raises(QueueFull) as caught:
        harness.submit("late", many_sequences(FakeWork(), wanted_units))
    retry_after_s = caught.value.retry_after_s
    assert retry_after_s is not None
    began_s = harness.clock()
    while harness.admission.queued_units + wanted_units > 1000:
        harness.run()
    # One step (26 ms) is the grain of the clock here.
    assert retry_after_s == pytest.approx(harness.clock() - began_s, rel=0.3, abs=0.06)
    harness.submit("late", many_sequences(FakeWork(), wanted_units))


def test_cancelled_and_expired_requests_give_their_room_back() -> None:
    harness = LoopHarness(FakeStepModel(), max_queue_units=20)
    harness.submit("cancelled", many_sequences(FakeWork(), 10), prepare=False)
    harness.submit("expired", many_sequences(FakeWork(), 10), deadline_s=harness.clock() + 1.0)
    harness.cancel("cancelled")
    harness.clock.advance(2.0)
    harness.run()
    assert harness.admission.queued_units == 0
    harness.submit("next", one_sequence(FakeWork(num_steps=20)))
