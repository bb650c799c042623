"""A member of etcd that is lost, silent or torn away costs a call and no state: reads go on, writes are never done twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from sixfold.scaling.hub.etcd_client import EtcdClient, endpoints_of
from sixfold.scaling.hub.store import StoreUnavailable
from tests.scaling.gateway.scripted import NOTHING, SILENCE, WAIT_S, Reply, ScriptedReplica

GOOD = Reply(parts=(b'{"kvs": []}',))
TIMEOUT_S = 0.3


@asynccontextmanager
async def members(*scripts: Reply) -> AsyncGenerator[tuple[EtcdClient, list[ScriptedReplica]]]:
    """A client of members of which each answers always the same."""
    async with AsyncExitStack() as stack:
        made = [ScriptedReplica(f"m{index}", script) for index, script in enumerate(scripts)]
        for member in made:
            await member.start()
            stack.push_async_callback(member.kill)
        yield EtcdClient(endpoints_of([member.url for member in made], timeout_s=TIMEOUT_S)), made


def num_seen(found: list[ScriptedReplica]) -> list[int]:
    return [len(member.seen) for member in found]


@pytest.mark.parametrize("fault", [NOTHING, SILENCE, Reply(status=503)], ids=["torn", "silent", "refuses"])
async def test_a_read_that_a_member_does_not_answer_is_asked_of_the_next_and_those_after_it_too(fault: Reply) -> None:
    async with members(fault, GOOD) as (client, found):
        for _ in range(3):
            assert await client.call("/v3/kv/range", {}, repeatable=True) == {"kvs": []}
    assert num_seen(found) == [1, 3]


async def test_a_member_whose_port_refuses_is_passed_over_also_by_writes_since_nothing_was_sent() -> None:
    async with members(GOOD, GOOD) as (client, found):
        await found[0].kill()
        await client.call("/v3/kv/txn", {}, repeatable=False)
        await found[0].start()
        await client.call("/v3/kv/txn", {}, repeatable=False)
    assert num_seen(found) == [0, 2]


@pytest.mark.parametrize("fault", [NOTHING, SILENCE], ids=["torn", "silent"])
async def test_a_write_that_a_lost_member_may_have_done_is_done_by_no_other(fault: Reply) -> None:
    async with members(fault, GOOD) as (client, found):
        with pytest.raises(StoreUnavailable):
            await client.call("/v3/kv/txn", {}, repeatable=False)
        assert num_seen(found) == [1, 0]
        await client.call("/v3/kv/txn", {}, repeatable=False)  # what comes next is asked of the one that lives
    assert num_seen(found) == [1, 1]


async def test_with_all_members_lost_the_store_is_unavailable_after_one_time_each() -> None:
    async with members(SILENCE, SILENCE, SILENCE) as (client, _found):
        async with asyncio.timeout(5 * TIMEOUT_S + 2.0):
            with pytest.raises(StoreUnavailable, match="did not answer"):
                await client.call("/v3/kv/range", {}, repeatable=True)


async def test_a_watch_whose_member_is_lost_ends_loudly_and_begins_anew_at_the_next() -> None:
    event = json.dumps({"result": {"header": {"revision": "7"}}}).encode() + b"\n"
    torn = Reply(parts=(event, b'{"result": {"hal'), then="tear", chunked=True)
    async with members(torn, Reply(parts=(event,), chunked=True)) as (client, found):
        heard: list[str] = []
        with pytest.raises(StoreUnavailable):
            async with asyncio.timeout(WAIT_S), client.watch({"key": "eA=="}) as results:
                async for result in results:
                    heard.append(result["header"]["revision"])
        async with asyncio.timeout(WAIT_S), client.watch({"key": "eA=="}) as results:
            async for result in results:
                heard.append(result["header"]["revision"])
    assert heard == ["7", "7"]
    assert num_seen(found) == [1, 1]
