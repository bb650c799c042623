from __future__ import annotations

import asyncio

import pytest

from sixfold.core.errors import NotReady, RequestCancelled
from sixfold.core.memory.occupancy import Occupancy, wait_for_place
from tests.fakes import FakeClock


class Changes:
    def __init__(self) -> None:
        self.num = 0

    def __call__(self) -> None:
        self.num += 1


def new_occupancy(*, max_waiting: int = 10) -> tuple[Occupancy, Changes, FakeClock]:
    changes, clock = Changes(), FakeClock()
    return Occupancy(clock, changes, max_waiting=max_waiting), changes, clock


async def test_a_model_is_idle_since_its_last_user_left() -> None:
    occupancy, changes, clock = new_occupancy()
    occupancy.enter()
    occupancy.enter()
    clock.advance(5.0)
    occupancy.leave()
    assert (changes.num, occupancy.idle_since_s) == (0, 1000.0)
    clock.advance(5.0)
    occupancy.leave()
    assert (changes.num, occupancy.idle_since_s) == (1, 1010.0)


async def test_those_who_wait_are_users_once_the_model_is_loaded() -> None:
    occupancy, changes, _clock = new_occupancy()
    waits = [asyncio.create_task(wait_for_place(occupancy.wait(), None, occupancy.leave)) for _ in range(3)]
    await asyncio.sleep(0)
    occupancy.admit_waiting()
    await asyncio.gather(*waits)
    assert (occupancy.num_users, occupancy.num_waiting, changes.num) == (3, 0, 0)


async def test_a_client_that_leaves_while_it_waits_is_not_counted() -> None:
    occupancy, changes, _clock = new_occupancy()
    wait = asyncio.create_task(wait_for_place(occupancy.wait(), None, occupancy.leave))
    await asyncio.sleep(0)
    wait.cancel()
    await asyncio.gather(wait, return_exceptions=True)
    assert (occupancy.num_waiting, changes.num) == (0, 1)
    occupancy.admit_waiting()
    assert occupancy.num_users == 0


async def test_a_client_that_leaves_at_the_moment_it_is_let_in_leaves_again() -> None:
    occupancy, _changes, _clock = new_occupancy()
    wait = asyncio.create_task(wait_for_place(occupancy.wait(), None, occupancy.leave))
    await asyncio.sleep(0)
    occupancy.admit_waiting()
    wait.cancel()
    with pytest.raises(asyncio.CancelledError):
        await wait
    assert occupancy.num_users == 0


async def test_the_owner_of_a_place_is_told_why_it_is_taken_away() -> None:
    occupancy, _changes, _clock = new_occupancy()
    gone, refused = occupancy.wait(), occupancy.wait()
    gone.set_exception(RequestCancelled("The client went away."))
    occupancy.refuse_waiting(NotReady("no luck"))
    with pytest.raises(RequestCancelled):
        await wait_for_place(gone, None, occupancy.leave)
    with pytest.raises(NotReady, match="no luck"):
        await wait_for_place(refused, None, occupancy.leave)
    assert (occupancy.num_users, occupancy.num_waiting) == (0, 0)


async def test_a_wait_ends_with_its_deadline() -> None:
    occupancy, _changes, _clock = new_occupancy()
    with pytest.raises(TimeoutError):
        await wait_for_place(occupancy.wait(), 0.0, occupancy.leave)
    await asyncio.sleep(0)
    assert occupancy.num_waiting == 0


async def test_not_everybody_may_wait() -> None:
    occupancy, _changes, _clock = new_occupancy(max_waiting=2)
    places = [occupancy.wait() for _ in range(2)]
    with pytest.raises(NotReady) as caught:
        occupancy.wait()
    assert caught.value.retry_after_s is not None
    for place in places:
        place.cancel()
