"""Admission is bounded in cost, answers at once, and its Retry-After follows the measured drain rate."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.core.batching.admission import Admission, Ticket
from sixfold.core.batching.model import StepRange
from sixfold.core.errors import QueueFull
from sixfold.core.messages import Failed, Priority
from tests.core.batching.loop_harness import LoopHarness
from tests.fakes import FakeClock, FakeStepModel, FakeWork, many_sequences, one_sequence


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


def answer_one_by_one(admission: Admission, *, wanted: int, used: int, count: int, finished: bool = True) -> None:
    """Keeps ten equal requests admitted, of which one ends every tenth of a second."""
    tickets = deque(admission.admit(wanted) for _ in range(10))
    for _ in range(count):
        ticket = tickets.popleft()
        admission.consume([(ticket, used)])
        admission.observe_step(used, 0.1)
        admission.leave(ticket, finished=finished)
        tickets.append(admission.admit(wanted))


def refused_s(admission: Admission, units: int) -> float:
    with pytest.raises(QueueFull) as caught:
        admission.admit(units)
    assert caught.value.retry_after_s is not None
    return caught.value.retry_after_s


def test_answers_that_end_early_make_room_sooner_and_retry_after_says_so() -> None:
    admission = Admission(1000)
    answer_one_by_one(admission, wanted=100, used=10, count=200)
    assert refused_s(admission, 100) == pytest.approx(0.1, rel=0.1)
    assert admission.units_per_s == pytest.approx(100.0)  # what is done is another thing than what becomes free


def test_what_cancelled_requests_leave_is_no_promise_of_more() -> None:
    admission = Admission(1000)
    answer_one_by_one(admission, wanted=100, used=10, count=200, finished=False)
    assert refused_s(admission, 100) == pytest.approx(1.0, rel=0.1)


def work_steadily(admission: Admission, units: int, seconds: float) -> None:
    """A request at a time, as long as the rest, of so much work every tenth of a second."""
    for _ in range(round(seconds * 10)):
        ticket = admission.admit(units)
        admission.consume([(ticket, units)])
        admission.leave(ticket, finished=True)
        admission.observe_step(units, 0.1)


@pytest.mark.parametrize(("excess", "into_step_s", "room_in_s"), [(20, 0.0, 1.0), (20, 0.25, 0.75), (150, 0.25, 1.75)])
def test_room_comes_when_a_step_ends_and_not_before(excess: int, into_step_s: float, room_in_s: float) -> None:
    clock = FakeClock()
    admission = Admission(1000, clock=clock)
    ticket = admission.admit(1000)
    for _ in range(5):
        clock.advance(1.0)
        admission.consume([(ticket, 100)])
        admission.observe_step(100, 1.0)
    admission.admit(500)
    clock.advance(into_step_s)
    assert refused_s(admission, excess) == pytest.approx(room_in_s)


def test_a_queue_may_be_bounded_in_seconds_of_work() -> None:
    admission = Admission(1_000_000, max_queue_s=2.0)
    work_steadily(admission, 50, 10.0)
    for _ in range(10):
        admission.admit(100)
    assert refused_s(admission, 1) > 0.0


def test_a_request_that_takes_all_of_the_seconds_does_not_keep_others_from_sharing_its_steps() -> None:
    admission = Admission(1_000_000, max_queue_s=0.05)
    work_steadily(admission, 50, 10.0)
    for _ in range(4):
        admission.admit(50)
    assert refused_s(admission, 50) > 0.0


def test_a_large_request_is_told_when_few_enough_are_left_to_share_steps_with() -> None:
    admission = Admission(1_000_000, max_queue_s=1.0)
    work_steadily(admission, 50, 10.0)
    for _ in range(5):
        admission.admit(100)
    assert refused_s(admission, 5000) == pytest.approx(0.4, rel=0.05)  # two requests of five, at 500 units a second


def test_work_that_was_asked_for_and_not_needed_does_not_fill_the_seconds() -> None:
    admission = Admission(1_000_000, max_queue_s=1.5)
    answer_one_by_one(admission, wanted=100, used=10, count=200)
    assert admission.queued_units == 1000  # ten requests of a tenth of a second each


def test_what_the_first_steps_take_is_no_speed_yet() -> None:
    admission = Admission(100_000, max_queue_s=1.0)
    work_steadily(admission, 1, 0.4)
    for _ in range(10):
        admission.admit(10_000)
    assert refused_s(admission, 1) > 0.0


def test_a_quiet_minute_does_not_make_the_queue_short_for_the_next_rush() -> None:
    admission = Admission(1_000_000, max_queue_s=2.0)
    work_steadily(admission, 50, 10.0)
    work_steadily(admission, 5, 20.0)  # one request at a time shows a tenth of what a batch does
    for _ in range(8):
        admission.admit(100)


def num_in_time(harness: LoopHarness, load: float, work: FakeWork, *, deadline: bool) -> int:
    """How many of those that come in the second half of 40 s are answered within 2 s of `load` times what can be done."""
    per_s = 600.0 / work.num_steps  # the model does 600 units a second
    began_s = harness.clock()
    due_s: dict[str, float] = {}
    while harness.clock() < began_s + 40.0:
        while len(due_s) < load * per_s * (harness.clock() - began_s):
            name = f"r{len(due_s)}"
            due_s[name] = harness.clock()
            with contextlib.suppress(QueueFull):
                until_s = harness.clock() + 2.0 if deadline else None
                harness.submit(name, one_sequence(work), deadline_s=until_s)
        if not harness.loop.run_once():
            harness.clock.advance(0.01)
    after_a_while = {name: at_s for name, at_s in due_s.items() if at_s > began_s + 20.0}
    return sum(harness.ended_s.get(name, 1e9) - at_s <= 2.0 for name, at_s in after_a_while.items()) - sum(
        isinstance(harness.events[name][-1], Failed) for name in after_a_while if name in harness.ended_s
    )


@pytest.mark.parametrize("told", ["by the operator", "by each request"])
@pytest.mark.parametrize("num_steps", [1, 20, 60])
def test_five_times_more_than_can_be_done_does_not_make_answers_late(told: str, num_steps: int) -> None:
    def answered(load: float) -> int:
        model = FakeStepModel(step_range=StepRange(min_units=1, initial_units=16, max_units=16))
        by_operator = told == "by the operator"
        harness = LoopHarness(model, max_queue_s=0.8 if by_operator else None)
        return num_in_time(harness, load, FakeWork(num_steps=num_steps), deadline=not by_operator)

    alone = answered(0.9)
    assert alone > 20 * 0.8 * 600.0 / num_steps
    assert answered(5.0) >= 0.9 * alone


def known(clock: FakeClock, *, num: int = 40, units: int = 50) -> Admission:
    """One that has done 500 units a second with up to so many requests, one after another, ten a second."""
    admission = Admission(1_000_000, clock=clock)
    for depth in (2, 5, 10, 20, num):
        waiting = deque(admission.admit(units, tenant="before") for _ in range(depth))
        for _ in range(20):
            clock.advance(0.1)
            first = waiting.popleft()
            admission.consume([(first, units)])
            admission.leave(first, finished=True)
            admission.observe_step(units, 0.1)
            waiting.append(admission.admit(units, tenant="before"))
        for ticket in waiting:
            admission.leave(ticket)
    return admission


def would_be_late(admission: Admission, units: int, within_s: float, **whose: Any) -> float:
    with pytest.raises(QueueFull, match="deadline") as caught:
        admission.admit(units, within_s=within_s, **whose)
    assert caught.value.code == "would_be_late"
    assert caught.value.retry_after_s is not None
    return caught.value.retry_after_s


def test_a_deadline_that_is_far_away_refuses_nothing_that_the_bound_lets_in() -> None:
    admission = known(FakeClock())
    for _ in range(100):
        admission.admit(500, within_s=600.0)  # 100 s of work


def test_whoever_would_be_late_is_told_when_there_will_be_time_for_it() -> None:
    admission = known(FakeClock())
    for _ in range(10):
        admission.admit(100)
    assert would_be_late(admission, 100, within_s=5.0) == pytest.approx(0.5)  # 2.5 times 2.2 s; has to fit into 4.25
    admission.admit(100, within_s=6.5)


@pytest.mark.parametrize(("rush", "units"), [(64, 50), (64, 1000), (5, 100_000)])
def test_a_rush_after_single_requests_is_let_in_since_nobody_knows_how_fast_a_batch_is(rush: int, units: int) -> None:
    admission = Admission(10_000_000)
    work_steadily(admission, 50, 60.0)
    for _ in range(rush):
        admission.admit(units, within_s=20.0)


def test_requests_that_share_no_steps_are_found_to_be_answered_sooner() -> None:
    clock = FakeClock()
    admission = known(clock)
    waiting = deque(admission.admit(50, within_s=6.0) for _ in range(20))
    for _ in range(150):
        clock.advance(0.1)
        ticket = waiting.popleft()
        admission.consume([(ticket, 50)])
        admission.observe_step(50, 0.1)
        admission.leave(ticket, finished=True)
        waiting.append(admission.admit(50, within_s=6.0))
    admission.admit(50, within_s=2.6)  # the 21st; 2.5 times 2.1 s would be too late


def test_work_of_a_lower_class_goes_before_a_request_by_its_weight_only() -> None:
    admission = known(FakeClock())
    for _ in range(20):
        admission.admit(90, priority=Priority.BATCH, within_s=600.0)  # 3.6 s of work
    for _ in range(5):
        admission.admit(50, priority=Priority.STANDARD, within_s=2.0)
    would_be_late(admission, 50, within_s=6.0, priority=Priority.BATCH)


def test_work_of_another_tenant_goes_before_a_request_by_its_weight_only() -> None:
    admission = known(FakeClock())
    for _ in range(20):
        admission.admit(90, tenant="a")  # 3.6 s of work
    for _ in range(3):
        admission.admit(50, tenant="b", within_s=2.0)
    would_be_late(admission, 50, within_s=6.0, tenant="a")


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.sampled_from(list(Priority)),
            st.integers(1, 400),
            st.floats(0.1, 30.0),
            st.booleans(),
        ),
        max_size=120,
    )
)
def test_whatever_comes_and_goes_the_flows_add_up(steps: list[tuple[str, Priority, int, float, bool]]) -> None:
    clock = FakeClock()
    admission = known(clock)
    held: deque[Ticket] = deque()
    for tenant, priority, units, within_s, goes in steps:
        with contextlib.suppress(QueueFull):
            held.append(admission.admit(units, tenant=tenant, priority=priority, within_s=within_s))
        if goes and held:
            clock.advance(0.1)
            ticket = held.popleft()
            admission.consume([(ticket, units)])
            admission.leave(ticket, finished=goes)
            admission.observe_step(units, 0.1)
        assert admission.queued_units == sum(ticket.remaining_units for ticket in held)
        assert admission.num_requests == len(held)
    for ticket in held:
        admission.leave(ticket)
    assert (admission.queued_units, admission.num_requests) == (0, 0)
    admission.admit(1, within_s=0.1)


@pytest.mark.parametrize("within_s", [0.001, 1.5])
def test_clients_that_want_the_impossible_do_not_close_the_queue_for_others(within_s: float) -> None:
    clock = FakeClock()
    admission = known(clock)
    for _ in range(200):
        held = [admission.admit(30) for _ in range(5)]
        with contextlib.suppress(QueueFull):
            hopeless = admission.admit(1, within_s=within_s)
            clock.advance(within_s)
            admission.leave(hopeless)
        for ticket in held:
            admission.leave(ticket)
    for _ in range(10):
        admission.admit(100, within_s=9.5)  # four times 2 s at the most


def test_one_that_gives_up_among_many_that_are_answered_moves_nothing() -> None:
    clock = FakeClock()
    admission = known(clock)
    for round_ in range(100):
        held = [admission.admit(30) for _ in range(5)]
        ticket = admission.admit(1, within_s=1.5)  # 0.3 s of work
        is_hopeless = round_ % 16 == 0
        clock.advance(1.5 if is_hopeless else 0.7)
        admission.leave(ticket, finished=not is_hopeless)
        for each in held:
            admission.leave(each)
    for _ in range(10):
        admission.admit(100, within_s=6.0)  # 2.5 times 2 s at the most


def test_many_that_give_up_in_a_queue_that_was_thought_to_be_faster_make_it_shorter() -> None:
    clock = FakeClock()
    admission = known(clock)
    for _ in range(64):
        held = [admission.admit(100) for _ in range(9)]
        with contextlib.suppress(QueueFull):
            late = admission.admit(100, within_s=6.5)
            clock.advance(6.5)
            admission.leave(late)
        for each in held:
            admission.leave(each)
    for _ in range(9):
        admission.admit(100)
    would_be_late(admission, 100, within_s=7.0)


def test_answers_that_take_longer_than_expected_make_the_promise_smaller() -> None:
    clock = FakeClock()
    admission = known(clock)
    for _ in range(100):
        held = [admission.admit(100) for _ in range(9)]
        late = admission.admit(100, within_s=8.5)  # 2 s of work
        clock.advance(7.0)
        admission.leave(late, finished=True)
        for ticket in held:
            admission.leave(ticket)
    for _ in range(9):
        admission.admit(100)
    would_be_late(admission, 100, within_s=8.0)
    admission.admit(100, within_s=8.5)


def test_a_deadline_that_has_passed_is_not_the_queues_matter() -> None:
    admission = known(FakeClock())
    for _ in range(10):
        admission.admit(100)
    admission.admit(1, within_s=0.0)


def test_cancelled_and_expired_requests_give_their_room_back() -> None:
    harness = LoopHarness(FakeStepModel(), max_queue_units=20)
    harness.submit("cancelled", many_sequences(FakeWork(), 10), prepare=False)
    harness.submit("expired", many_sequences(FakeWork(), 10), deadline_s=harness.clock() + 1.0)
    harness.cancel("cancelled")
    harness.clock.advance(2.0)
    harness.run()
    assert harness.admission.queued_units == 0
    harness.submit("next", one_sequence(FakeWork(num_steps=20)))
