"""Requests of a flooded path are looked at in groups; nobody else waits."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from sixfold.core.errors import QueueFull
from sixfold.core.serving import turns
from sixfold.core.serving.turns import Turns
from tests.core.serving.fake_replica import FakeReplica
from tests.core.serving.server_thread import ServerThread
from tests.fakes import FakeClock

CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"


def refuse(flood: Turns, count: int, path: str = CHAT) -> None:
    for _ in range(count):
        flood.refused(path)


def test_a_flood_is_eight_refusals_of_one_path_within_half_a_second() -> None:
    clock = FakeClock()
    flood = Turns(clock)
    refuse(flood, 7)
    assert not flood.is_flooded(CHAT)
    refuse(flood, 1)
    assert flood.is_flooded(CHAT)
    assert not flood.is_flooded(EMBED)
    clock.advance(0.6)
    assert not flood.is_flooded(CHAT)


def test_refusals_that_come_slowly_are_no_flood() -> None:
    clock = FakeClock()
    flood = Turns(clock)
    for _ in range(100):
        refuse(flood, 1)
        clock.advance(0.1)
        assert not flood.is_flooded(CHAT)


def test_paths_that_nobody_floods_any_more_are_forgotten() -> None:
    clock = FakeClock()
    flood = Turns(clock)
    for number in range(1000):
        refuse(flood, 1, f"/{number}")
        clock.advance(1.0)
    assert len(flood) <= 32
    for number in range(1000):
        refuse(flood, 1, f"/at once/{number}")
    assert len(flood) <= 32


async def test_who_waits_is_let_in_together_in_the_order_of_arrival() -> None:
    flood = Turns(monotonic)
    seen: list[int | str] = []

    async def come(number: int) -> None:
        await flood.turn()
        if not seen:
            asyncio.get_running_loop().call_soon(seen.append, "another iteration of the loop")
        seen.append(number)

    await asyncio.gather(*map(come, range(5)))
    await asyncio.sleep(0)
    assert seen == [0, 1, 2, 3, 4, "another iteration of the loop"]


async def test_a_turn_that_is_full_begins_at_once_and_the_next_one_waits_for_its_own_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "TURN_S", 3600.0)
    flood = Turns(monotonic)
    late = await waiting(flood)
    await asyncio.gather(*(flood.turn() for _ in range(turns.MOST - 1)))
    await late
    other = await waiting(flood)
    assert not other.done()
    other.cancel()


async def test_who_leaves_takes_nobody_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_S", 0.01)
    flood = Turns(monotonic)
    first = await waiting(flood)
    second = await waiting(flood)
    first.cancel()
    await second
    assert first.cancelled()


async def waiting(flood: Turns) -> asyncio.Task[None]:
    task = asyncio.create_task(flood.turn())
    await asyncio.sleep(0)
    return task


def test_in_a_flood_a_server_refuses_in_turns_and_answers_other_paths(
    served: ServerThread, replica: FakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    turn = Turns.turn

    async def counted(self: Turns) -> None:
        waited.append(1)
        await turn(self)

    monkeypatch.setattr(Turns, "turn", counted)
    replica.rejection = QueueFull("The queue is full.", retry_after_s=1.2)
    assert [served.echo().status for _ in range(10)] == [429] * 10
    assert len(waited) == 2
    assert served.ask("GET", "/v1/models").status == 200
    assert len(waited) == 2
    replica.rejection = None
    assert served.echo().status == 200
