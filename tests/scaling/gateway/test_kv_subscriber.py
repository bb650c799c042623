"""The gateway's picture of a cache is what our own runtime's publisher says, whenever the gateway came and whatever it missed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq
import zmq.asyncio

from sixfold.plugins.llm.kv_event_publisher import KvEventPublisher
from sixfold.plugins.llm.kv_events import KvEventLog
from sixfold.scaling.gateway.kv_subscriber import BatchOrder, KvSubscriber, announcer_of
from sixfold.scaling.registry import ReplicaRecord
from sixfold.scaling.route.kv_index import KvIndex
from tests.scaling.gateway.scripted import ScriptedReplica, fleet

SIZE = 4


def name(number: int) -> bytes:
    return number.to_bytes(16, "big")


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[KvEventPublisher]:
    made = KvEventPublisher("tcp://127.0.0.1:*", replay_endpoint=f"ipc://{tmp_path}/replay")
    yield made
    made.close()


class Listener:
    """A subscriber to one replica, and the wait for what it has heard."""

    def __init__(self, publisher: KvEventPublisher, *, replays: bool = True) -> None:
        self.index = KvIndex()
        self._heard = asyncio.Event()
        self.subscriber = KvSubscriber(self.index, self._heard.set)
        self.record = ReplicaRecord(
            replica_id="r", url="http://127.0.0.1:1", kv_events=publisher.endpoint,
            kv_replay=publisher.replay_endpoint if replays else None,
        )  # fmt: skip

    async def until(self, num_blocks: int) -> None:
        async with asyncio.timeout(20):
            while self.index.num_blocks("r") != num_blocks:
                self._heard.clear()
                await self._heard.wait()


async def test_a_gateway_that_comes_later_learns_what_is_held_and_follows_from_there(
    publisher: KvEventPublisher,
) -> None:
    log = KvEventLog(SIZE, publisher.publish)
    log.stored([name(1), name(2)], b"", range(8))
    log.flush()
    listener = Listener(publisher)
    listener.subscriber.follow([listener.record])
    await listener.until(2)
    assert listener.index.cached_tokens(range(8), ["r"]) == {"r": 8}
    number = 3
    while listener.index.num_blocks("r") < 3:  # until the subscription itself has arrived
        log.stored([name(number)], name(number - 1), range(8 + 4 * (number - 3), 12 + 4 * (number - 3)))
        log.flush()
        number += 1
        await asyncio.sleep(0.01)
    await listener.until(number - 1)
    log.removed(name(1))
    log.flush()
    await listener.until(number - 2)
    assert listener.index.cached_tokens(range(8), ["r"]) == {"r": 0}
    listener.subscriber.follow([])
    assert listener.index.num_blocks("r") == 0
    await listener.subscriber.close()


async def test_another_process_under_the_address_begins_with_an_empty_cache(publisher: KvEventPublisher) -> None:
    listener = Listener(publisher)
    log = KvEventLog(SIZE, publisher.publish)
    log.stored([name(1)], b"", range(4))
    log.flush()
    listener.subscriber.follow([listener.record])
    await listener.until(1)
    listener.subscriber.follow([msgspec.structs.replace(listener.record, incarnation=1)])
    assert listener.index.num_blocks("r") == 0
    await listener.subscriber.close()


@pytest.mark.parametrize(
    "event",
    [
        {
            "type": "BlockStored",
            "block_hashes": [1],
            "parent_block_hash": None,
            "token_ids": [-1] * SIZE,
            "block_size": SIZE,
        },
        {"type": "BlockStored", "block_hashes": [1], "parent_block_hash": None, "token_ids": [2**32], "block_size": 1},
        {"type": "BlockStored", "block_hashes": [1], "parent_block_hash": None, "token_ids": [1], "block_size": 0},
        {"type": b"\xa1\xff"},
    ],
)
async def test_events_that_no_runtime_sends_are_said_and_the_cache_is_guessed(
    event: object,
) -> None:
    context = zmq.asyncio.Context()
    with context.socket(zmq.ROUTER) as replay:
        port = replay.bind_to_random_port("tcp://127.0.0.1")
        payload = msgspec.msgpack.encode([0.0, [event]]).replace(b"\xc4\x02\xa1\xff", b"\xa1\xff")
        await said_after(replay, port, ((0).to_bytes(8, "big"), payload))
    context.destroy(linger=0)


async def test_a_replay_of_another_form_is_said_and_the_cache_is_guessed() -> None:
    context = zmq.asyncio.Context()
    with context.socket(zmq.ROUTER) as replay:
        port = replay.bind_to_random_port("tcp://127.0.0.1")
        await said_after(replay, port, (b"only this",))
    context.destroy(linger=0)


async def said_after(replay: zmq.asyncio.Socket, port: int, frames: tuple[bytes, ...]) -> None:
    """Answers a subscriber's question for a replay and waits until the end of the subscription is in the log."""
    said = asyncio.Event()

    def notice(record: logging.LogRecord) -> bool:
        if "can't be read" in record.getMessage():
            said.set()
        return True

    logger = logging.getLogger(KvSubscriber.__module__)
    logger.addFilter(notice)
    subscriber = KvSubscriber(KvIndex())
    endpoint = f"tcp://127.0.0.1:{port}"
    subscriber.follow([ReplicaRecord(replica_id="r", url="http://a", kv_events=endpoint, kv_replay=endpoint)])
    async with asyncio.timeout(20):
        peer, *_question = await replay.recv_multipart()
        await replay.send_multipart((peer, b"", *frames))  # pyright: ignore[reportUnknownMemberType]  # untyped parts
        await said.wait()
    logger.removeFilter(notice)
    await subscriber.close()


async def test_requests_go_where_their_tokens_are_announced(publisher: KvEventPublisher) -> None:
    log = KvEventLog(SIZE, publisher.publish)
    log.stored([name(1), name(2)], b"", range(8))
    log.flush()
    cold, warm = ScriptedReplica("cold"), ScriptedReplica("warm")
    await cold.start()
    await warm.start()
    replicas = [
        {"url": cold.url},
        {"url": warm.url, "kv_events": publisher.endpoint, "kv_replay": publisher.replay_endpoint},
    ]
    async with fleet(replicas=replicas, routing={"policy": "kv"}) as gateway:
        async with asyncio.timeout(20):
            while not await gateway.metric("sixfold:gateway_kv_blocks", replica=warm.url):
                pass
        for extra in range(3):
            body = {"model": "m", "prompt": [*range(8), extra]}
            assert await gateway.ask_json(body) == {"by": "warm"}
        hits = await gateway.metric("sixfold:prefix_cache_hits_total", model_name="m")
        queries = await gateway.metric("sixfold:prefix_cache_queries_total", model_name="m")
        assert (hits, queries) == (24, 27)
        for prompt in ([-1], [*range(8), 2**32, 2**80]):  # no tokens: the replica says so
            assert (await gateway.ask({"model": "m", "prompt": prompt}))[0] == 200
    await cold.kill()
    await warm.kill()


def test_batches_are_applied_in_order_and_gaps_restarts_and_repeats_are_told_apart() -> None:
    order = BatchOrder()
    assert order.place(7) == "gap"
    assert order.place(0) == "apply"
    order.next_number = 5
    assert [order.place(number) for number in (5, 6, 4, 0)] == ["apply", "gap", "old", "restart"]


def test_an_address_of_all_interfaces_is_sought_on_the_replicas_host() -> None:
    record = ReplicaRecord(
        replica_id="r", url="http://10.1.2.3:8000", kv_events="tcp://*:5557", kv_replay="tcp://0.0.0.0:1"
    )
    announcer = announcer_of(record)
    assert announcer is not None
    assert (announcer.events, announcer.replay) == ("tcp://10.1.2.3:5557", "tcp://10.1.2.3:1")
    assert announcer_of(ReplicaRecord(replica_id="r", url="http://a")) is None
    assert announcer_of(ReplicaRecord(replica_id="r", url="http://[a", kv_events="tcp://*:5557")) is None
