"""The door refuses only what the replica would refuse, as it would, and only in a flood."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.core.batching.admission import Admission, Ticket
from sixfold.core.errors import QueueFull
from sixfold.core.messages import Priority
from sixfold.core.runtime.door import Door
from tests.fakes import FakeClock

STANDARD = Priority.STANDARD


def flood(
    door: Door,
    *,
    count: int = 8,
    tenant: str = "a",
    within_s: float | None = None,
    room_in_s: float = 1.0,
    num_bytes: int = 100,
) -> None:
    for _ in range(count):
        door.refused(tenant, STANDARD, within_s, num_bytes, QueueFull("full", retry_after_s=room_in_s))


def is_refused(
    door: Door,
    tenant: str = "a",
    priority: Priority = STANDARD,
    within_s: float | None = None,
    num_bytes: int = 100,
) -> bool:
    try:
        door.pass_or_refuse(tenant, priority, within_s, num_bytes)
    except QueueFull:
        return True
    return False


def test_the_first_refusals_leave_it_open() -> None:
    door = Door(FakeClock())
    flood(door, count=7)
    assert not is_refused(door)
    flood(door, count=1)
    assert is_refused(door)


def test_refusals_that_come_slowly_leave_it_open() -> None:
    clock = FakeClock()
    door = Door(clock)
    for _ in range(100):
        flood(door, count=1)
        assert not is_refused(door)
        clock.advance(0.08)


def test_it_opens_when_there_is_room_and_after_a_tenth_of_a_second_at_the_latest() -> None:
    clock = FakeClock()
    door = Door(clock)
    flood(door, room_in_s=0.06)
    clock.advance(0.05)
    with pytest.raises(QueueFull, match="full") as caught:
        door.pass_or_refuse("a", STANDARD, None, 100)
    assert caught.value.retry_after_s == pytest.approx(0.01)
    clock.advance(0.011)
    assert not is_refused(door)
    flood(door, room_in_s=60.0)
    clock.advance(0.09)
    assert is_refused(door)
    clock.advance(0.011)
    assert not is_refused(door)


def test_the_time_that_the_replica_named_is_told_though_the_door_opens_sooner() -> None:
    clock = FakeClock()
    door = Door(clock)
    flood(door, room_in_s=0.6)
    clock.advance(0.05)
    with pytest.raises(QueueFull) as caught:
        door.pass_or_refuse("a", STANDARD, None, 100)
    assert caught.value.retry_after_s == pytest.approx(0.55)


def test_another_tenant_and_another_class_ask_for_themselves() -> None:
    door = Door(FakeClock())
    flood(door)
    assert is_refused(door)
    assert not is_refused(door, tenant="b")
    assert not is_refused(door, priority=Priority.INTERACTIVE)


def test_a_request_with_more_time_than_the_one_that_was_refused_asks_for_itself() -> None:
    door = Door(FakeClock())
    flood(door, within_s=8.0)
    assert is_refused(door, within_s=7.99)
    assert is_refused(door, within_s=8.001)
    assert not is_refused(door, within_s=60.0)
    assert not is_refused(door)
    flood(door)
    assert is_refused(door)


def test_a_smaller_request_than_those_that_were_refused_asks_for_itself() -> None:
    door = Door(FakeClock())
    flood(door, count=7, num_bytes=64_000)
    flood(door, count=1, num_bytes=50_000)
    assert is_refused(door, num_bytes=50_000)
    assert is_refused(door, num_bytes=64_000)
    assert not is_refused(door, num_bytes=40_000)
    assert not is_refused(door, num_bytes=400)


def test_a_much_larger_request_asks_how_long_it_has_to_wait() -> None:
    door = Door(FakeClock())
    flood(door, num_bytes=60_000)
    assert not is_refused(door, num_bytes=240_000)
    flood(door, num_bytes=240_000, room_in_s=4.0)
    with pytest.raises(QueueFull) as caught:
        door.pass_or_refuse("a", STANDARD, None, 240_000)
    assert caught.value.retry_after_s == pytest.approx(4.0)
    assert is_refused(door, num_bytes=60_000)


def test_the_door_says_what_the_replica_said() -> None:
    door = Door(FakeClock())
    for _ in range(8):
        door.refused("a", STANDARD, 8.0, 100, QueueFull("late", code="would_be_late", retry_after_s=1.0))
    with pytest.raises(QueueFull, match="late") as caught:
        door.pass_or_refuse("a", STANDARD, 8.0, 100)
    assert caught.value.code == "would_be_late"


def test_it_opens_long_before_a_short_queue_has_run_dry() -> None:
    clock = FakeClock()
    door = Door(clock)
    flood(door, within_s=0.08)
    clock.advance(0.009)
    assert is_refused(door, within_s=0.08)
    clock.advance(0.002)
    assert not is_refused(door, within_s=0.08)


def test_a_refusal_that_names_no_time_says_nothing() -> None:
    door = Door(FakeClock())
    for _ in range(20):
        door.refused("a", STANDARD, None, 100, QueueFull("full"))
    assert not is_refused(door)


def test_it_does_not_remember_every_tenant_that_ever_came() -> None:
    clock = FakeClock()
    door = Door(clock)
    for number in range(10_000):
        flood(door, count=1, tenant=f"t{number}")
        clock.advance(0.1)
    assert len(door) <= 128


@given(
    arrivals=st.lists(
        st.tuples(st.floats(0.0005, 0.2), st.lists(st.sampled_from([1, 10, 45]), max_size=9)), min_size=1, max_size=300
    ),
    rate=st.floats(10.0, 2000.0),
)
def test_nobody_is_refused_at_the_door_for_longer_than_a_tenth_of_a_second_after_there_is_room(
    arrivals: list[tuple[float, list[int]]], rate: float
) -> None:
    """A real admission of 50 units that drains steadily, and requests of several sizes."""
    clock = FakeClock()
    door = Door(clock)
    admission = Admission(50, clock=clock)
    held: deque[Ticket] = deque()
    owed, room_since_s = 0.0, {size: clock() for size in (1, 10, 45)}
    for gap_s, sizes in arrivals:
        for size in sizes:
            if is_refused(door, num_bytes=size):
                has_room = admission.queued_units + size <= 50
                assert not has_room or clock() - room_since_s[size] <= 0.1 + 1e-6
                continue
            try:
                held.append(admission.admit(size))
                room_since_s = {
                    each: since_s if admission.queued_units + each <= 50 else float("inf")
                    for each, since_s in room_since_s.items()
                }
            except QueueFull as full:
                door.refused("a", STANDARD, None, size, full)
        clock.advance(gap_s)
        owed += gap_s * rate
        done = min(int(owed), admission.queued_units)
        owed -= done if admission.queued_units > done else owed
        left = done
        while left:
            units = min(left, held[0].remaining_units)
            admission.consume([(held[0], units)])
            left -= units
            if not held[0].remaining_units:
                admission.leave(held.popleft(), finished=True)
        admission.observe_step(done, gap_s)
        for size, since_s in room_since_s.items():
            is_full = admission.queued_units + size > 50
            room_since_s[size] = float("inf") if is_full else min(since_s, clock())
