"""Two replicas work on one request: who answers first wins, and nothing of the other is left behind."""

from __future__ import annotations

import asyncio

import pytest

from sixfold.scaling.gateway.upstream import Answer, Outgoing, Upstream
from tests.scaling.gateway.scripted import WAIT_S, ScriptedReplica, fleet


@pytest.mark.parametrize("answers_late", [False, True])
async def test_a_winner_does_not_wait_for_the_loser_to_stop_and_both_give_all_back(
    monkeypatch: pytest.MonkeyPatch, answers_late: bool
) -> None:
    one, two = ScriptedReplica("one"), ScriptedReplica("two")
    told_to_stop, go = asyncio.Event(), asyncio.Event()
    holds = False
    send = Upstream.send

    async def stubborn(upstream: Upstream, url: str, outgoing: Outgoing) -> Answer:
        nonlocal holds
        if holds:
            holds = False
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                told_to_stop.set()
                await go.wait()
                if not answers_late:
                    raise
        return await send(upstream, url, outgoing)

    async def num_running() -> float:
        running = [await gateway.metric("sixfold:num_requests_running", replica=each.url) for each in (one, two)]
        return sum(running)

    monkeypatch.setattr(Upstream, "send", stubborn)
    async with (
        fleet(one, two, hedging={"enabled": True, "budget": 0.0245}) as gateway,  # one hedge in 41 requests
        asyncio.timeout(WAIT_S / 2),
    ):
        for _request in range(40):
            await gateway.ask()
        holds = True
        assert (await gateway.ask())[0] == 200
        assert told_to_stop.is_set()
        assert await num_running() == 1
        go.set()
        while await num_running():
            pass
    assert len(one.seen) + len(two.seen) == 41 + answers_late
