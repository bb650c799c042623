"""The door refuses only what the replica would refuse, as it would, and only in a flood."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.core.errors import QueueFull
from sixfold.core.messages import Priority
from sixfold.core.runtime.door import Door
from tests.fakes import FakeClock

STANDARD = Priority.STANDARD


def flood(
    door: Door, *, count: int = 8, tenant: str = "a", within_s: float | None = None, room_in_s: float = 1.0
) -> None:
    for _ in range(count):
        door.refused(tenant, STANDARD, within_s, QueueFull("full", retry_after_s=room_in_s))


def is_refused(door: Door, tenant: str = "a", priority: Priority = STANDARD, within_s: float | None = None) -> bool:
    try:
        door.pass_or_refuse(tenant, priority, within_s)
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
        door.pass_or_refuse("a", STANDARD, None)
    assert caught.value.retry_after_s == pytest.approx(0.01)
    clock.advance(0.011)
    assert not is_refused(door)
    flood(door, room_in_s=60.0)
    clock.advance(0.09)
    assert is_refused(door)
    clock.advance(0.011)
    assert not is_refused(door)


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


def test_a_refusal_that_names_no_time_says_nothing() -> None:
    door = Door(FakeClock())
    for _ in range(20):
        door.refused("a", STANDARD, None, QueueFull("full"))
    assert not is_refused(door)


def test_it_does_not_remember_every_tenant_that_ever_came() -> None:
    clock = FakeClock()
    door = Door(clock)
    for number in range(10_000):
        flood(door, count=1, tenant=f"t{number}")
        clock.advance(0.1)
    assert len(door) <= 64


@given(
    arrivals=st.lists(st.tuples(st.floats(0.0005, 0.2), st.integers(1, 9)), min_size=1, max_size=300),
    rate=st.floats(10.0, 200.0),
)
def test_whoever_is_refused_at_the_door_would_have_been_refused_inside(
    arrivals: list[tuple[float, int]], rate: float
) -> None:
    """A queue of 50 units that drains steadily, and requests of 10."""
    clock = FakeClock()
    door = Door(clock)
    queued = 0.0
    for gap_s, count in arrivals:
        for _ in range(count):
            has_room = queued + 10 <= 50
            if is_refused(door):
                assert not has_room or queued + 10 == pytest.approx(50)
            elif has_room:
                queued += 10
            else:
                door.refused("a", STANDARD, None, QueueFull("full", retry_after_s=(queued + 10 - 50) / rate))
        queued = max(0.0, queued - gap_s * rate)
        clock.advance(gap_s)
