"""Bounds, fair order and honest advice at the gateway's door."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.core.errors import DeadlineExceeded, NotReady, QueueFull, RequestError
from sixfold.core.serving.settings import ApiKeySettings, ServerSettings, hash_key
from sixfold.scaling.gateway.admission import Admission, DrainRate
from tests.fakes import FakeClock
from tests.scaling.gateway.scripted import Reply, ScriptedReplica, fleet


class Door:
    """An admission whose capacity is set by the test."""

    def __init__(self, capacity: int, *, max_waiting: int = 1000, hold_s: float = 0.0) -> None:
        self.capacity = capacity
        self.clock = FakeClock()
        self.admission = Admission(
            capacity=lambda: self.capacity,
            max_waiting=max_waiting,
            hold_s=hold_s,
            no_replica=lambda: NotReady("no server"),
            clock=self.clock,
        )
        self.entered: list[str] = []

    def come(self, tenant: str, *, weight: float = 1.0, cost: float = 1.0) -> asyncio.Task[None]:
        async def enter() -> None:
            await self.admission.enter(tenant, weight=weight, cost=cost, deadline_s=None)
            self.entered.append(tenant)

        return asyncio.create_task(enter())


async def settle() -> None:
    for _turn in range(5):
        await asyncio.sleep(0)


async def test_a_key_with_many_requests_delays_itself_and_not_the_others() -> None:
    door = Door(1)
    await door.come("first")
    waiting = [door.come("greedy") for _request in range(10)]
    await settle()
    waiting += [door.come("modest") for _request in range(2)]
    await settle()
    for _request in waiting:
        door.admission.leave()
        await settle()
    # The modest key comes when the greedy one's tags have run ahead, and goes first from then on.
    assert door.entered.index("modest") <= 2
    assert [each for each in door.entered if each == "modest"] == ["modest"] * 2
    assert len(door.entered) == 13


async def test_keys_share_by_their_weights() -> None:
    door = Door(1)
    await door.come("first")
    waiting = [
        door.come(name, weight=weight) for name, weight in (("heavy", 3.0), ("light", 1.0)) for _each in range(40)
    ]
    await settle()
    for _request in range(40):
        door.admission.leave()
        await settle()
    assert Counter(door.entered[1:]) == {"heavy": pytest.approx(30, abs=1), "light": pytest.approx(10, abs=1)}
    for task in waiting:
        task.cancel()
    await settle()
    assert door.admission.num_waiting == 0


async def test_a_full_queue_refuses_the_key_that_has_most_waiting() -> None:
    door = Door(1, max_waiting=3)
    await door.come("first")
    greedy = [door.come("greedy") for _request in range(3)]
    await settle()
    modest = door.come("modest")
    await settle()
    assert isinstance(greedy[2].exception(), QueueFull)
    assert not modest.done()
    again = door.come("greedy")
    await settle()
    assert isinstance(again.exception(), QueueFull)
    for task in (*greedy, modest):
        task.cancel()
    await settle()


async def test_the_advice_when_to_come_back_follows_the_rate_at_which_requests_end() -> None:
    clock = FakeClock()
    rate = DrainRate()
    assert rate.retry_after_s(5, clock()) == 60.0
    for _second in range(20):
        clock.advance(1.0)
        rate.ended(clock())
        rate.ended(clock())
    assert rate.retry_after_s(20, clock()) == pytest.approx(10.0, rel=0.1)
    assert rate.retry_after_s(0, clock()) == 1.0
    clock.advance(100.0)
    assert rate.retry_after_s(20, clock()) == 60.0


async def test_who_waits_leaves_at_its_deadline_or_with_its_client() -> None:
    door = Door(1)
    await door.come("first")
    with pytest.raises(DeadlineExceeded):
        await door.admission.enter("late", weight=1.0, cost=1.0, deadline_s=door.clock() + 0.01)
    gone = door.come("gone")
    await settle()
    gone.cancel()
    await settle()
    last = door.come("last")
    await settle()
    door.admission.leave()
    await last
    assert (door.admission.num_running, door.admission.num_waiting) == (1, 0)


async def test_without_replicas_requests_wait_as_long_as_they_are_held() -> None:
    with pytest.raises(NotReady):
        await Door(0).admission.enter("a", weight=1.0, cost=1.0, deadline_s=None)
    door = Door(0, hold_s=0.01)
    with pytest.raises(NotReady):
        await door.admission.enter("a", weight=1.0, cost=1.0, deadline_s=None)
    waiting = Door(0, hold_s=60.0)
    task = waiting.come("a")
    await settle()
    waiting.capacity = 1
    waiting.admission.pump()
    await task


async def test_who_queued_when_the_last_replica_went_is_refused_when_it_was_held_for_long_enough() -> None:
    for hold_s in (0.0, 0.01):
        door = Door(1, hold_s=hold_s)
        await door.come("first")
        waiting = [door.come(tenant) for tenant in "aab"]
        await settle()
        door.capacity = 0
        door.admission.pump()
        for task in waiting:
            with pytest.raises(NotReady):
                await task
        assert (door.admission.num_running, door.admission.num_waiting) == (1, 0)


async def test_a_replica_that_comes_back_in_time_ends_the_hold_of_all_who_wait() -> None:
    door = Door(1, hold_s=0.02)
    await door.come("first")
    waiting = [door.come(tenant) for tenant in "ab"]
    await settle()
    door.capacity = 0
    door.admission.pump()
    door.capacity = 1
    door.admission.pump()
    with pytest.raises(DeadlineExceeded):  # comes when the hold would have ended long ago
        await door.admission.enter("late", weight=1.0, cost=1.0, deadline_s=door.clock() + 0.05)
    assert not any(task.done() for task in waiting)
    for task in waiting:
        door.admission.leave()
        await task


async def test_requests_that_wait_at_a_full_replica_are_told_when_it_dies() -> None:
    dying = ScriptedReplica("dying", Reply(then="wait"))
    async with fleet(dying, admission={"max_running_per_replica": 1}, retries={"max_attempts": 1}) as gateway:
        asking = [asyncio.create_task(gateway.ask()) for _request in range(3)]
        await dying.wait_seen(1)
        while await gateway.metric("sixfold:num_requests_waiting", model_name="m") < 2:
            pass
        await dying.kill()
        answers = await asyncio.gather(*asking)
    codes = Counter(json.loads(content)["error"]["code"] for _status, content, _headers in answers)
    assert codes == {"worker_died": 1, "not_ready": 2}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("come", "leave", "cancel", "grow", "shrink", "die")),
            st.sampled_from("abc"),
            st.integers(1, 9),
        ),
        max_size=60,
    )
)
def test_whatever_happens_bounds_hold_and_nothing_is_lost(steps: list[tuple[str, str, int]]) -> None:
    async def play() -> None:
        door = Door(2, max_waiting=5)
        tasks: list[asyncio.Task[None]] = []
        num_running = 0
        for kind, tenant, cost in steps:
            before = len(door.entered)
            if kind == "come":
                tasks.append(door.come(tenant, cost=float(cost)))
            elif kind == "leave" and door.admission.num_running:
                door.admission.leave()
                num_running -= 1
            elif kind == "cancel":
                for task in tasks[-1:]:
                    task.cancel()
            elif kind == "grow":
                door.capacity = min(6, door.capacity + 1)
                door.admission.pump()
            elif kind == "shrink":
                door.capacity = max(1, door.capacity - 1)
            elif kind == "die":
                door.capacity = 0
                door.admission.pump()
            await settle()
            num_running += len(door.entered) - before
            assert num_running == door.admission.num_running
            assert door.admission.num_waiting == sum(not task.done() for task in tasks) <= 5
            assert not door.admission.num_waiting or num_running >= door.capacity
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert outcome is None or isinstance(outcome, RequestError | asyncio.CancelledError)

    asyncio.run(play())


async def test_more_than_may_wait_get_429_and_the_rest_an_answer() -> None:
    slow = ScriptedReplica("slow", Reply(then="wait"))
    limits = {"max_running_per_replica": 2, "max_waiting": 3}
    async with fleet(slow, admission=limits) as gateway:
        asking = [asyncio.create_task(gateway.ask()) for _request in range(8)]
        while sum(task.done() for task in asking) < 3:
            await asyncio.sleep(0)
        await slow.wait_seen(2)
        assert len(slow.seen) == 2
        slow.go.set()
        answers = await asyncio.gather(*asking)
    assert Counter(status for status, _content, _headers in answers) == {200: 5, 429: 3}
    (content, headers) = next((content, headers) for status, content, headers in answers if status == 429)
    assert json.loads(content)["error"]["code"] == "queue_full"
    assert int(headers["retry-after"]) >= 1


async def test_bodies_that_are_held_are_bounded_and_given_back() -> None:
    slow = ScriptedReplica("slow", Reply(then="wait"))
    async with fleet(slow, admission={"max_buffered_bytes": 4096}) as gateway:
        first = asyncio.create_task(gateway.ask({"model": "m", "prompt": "x" * 3000}))
        await slow.wait_seen(1)
        assert await gateway.metric("sixfold:gateway_buffered_bytes") > 3000
        assert (await gateway.ask({"model": "m", "prompt": "x" * 3000}))[0] == 429
        slow.go.set()
        assert (await first)[0] == 200
        assert await gateway.metric("sixfold:gateway_buffered_bytes") == 0


async def test_a_keys_own_limits_hold_at_the_gateway() -> None:
    key = ApiKeySettings.model_validate({"name": "ward", "sha256": hash_key("k"), "limits": {"requests_per_minute": 2}})
    async with fleet(ScriptedReplica("a"), server=ServerSettings(port=0, api_keys=(key,))) as gateway:
        statuses = [(await gateway.ask(authorization="Bearer k"))[0] for _request in range(3)]
    assert statuses == [200, 200, 429]
