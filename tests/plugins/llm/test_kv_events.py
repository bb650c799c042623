"""A consumer written for vLLM's wire format follows what a replica's cache holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from sixfold.core.errors import ConfigError
from sixfold.plugins.llm.generation import CompletionInput, SamplingParams
from sixfold.plugins.llm.kv_event_publisher import KvEventPublisher
from sixfold.plugins.llm.kv_events import KvEventLog, wire_hash
from sixfold.plugins.llm.prefix_sharing import PrefixSharing


# As a consumer of vLLM 0.32 declares them: events are maps tagged "type", the batch is an array.
class Event(msgspec.Struct, omit_defaults=True, gc=False, tag=True):
    pass


class BlockStored(Event):
    block_hashes: list[bytes | int]
    parent_block_hash: bytes | int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None = None


class BlockRemoved(Event):
    block_hashes: list[bytes | int]
    medium: str | None


class AllBlocksCleared(Event):
    pass


class EventBatch(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


DECODE = msgspec.msgpack.Decoder(EventBatch).decode


class Index:
    """What a router makes of the events: the tokens of every block it believes to be cached."""

    def __init__(self) -> None:
        self.tokens: dict[bytes | int, list[int]] = {}

    def apply(self, batch: EventBatch) -> None:
        for event in batch.events:
            if isinstance(event, AllBlocksCleared):
                self.tokens.clear()
            elif isinstance(event, BlockRemoved):
                for block in event.block_hashes:
                    del self.tokens[block]
            else:
                before = [] if event.parent_block_hash is None else self.tokens[event.parent_block_hash]
                for place, block in enumerate(event.block_hashes):
                    before = before + event.token_ids[place * event.block_size : (place + 1) * event.block_size]
                    self.tokens[block] = before


@pytest.fixture
def sockets() -> Iterator[Callable[[int, str], Any]]:
    context = zmq.Context()
    opened: list[Any] = []

    def connect(kind: int, endpoint: str) -> Any:
        socket = context.socket(kind)
        opened.append(socket)
        socket.rcvtimeo = 10_000
        socket.connect(endpoint)
        return socket

    yield connect
    for socket in opened:
        socket.close(linger=0)
    context.term()


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[KvEventPublisher]:
    made = KvEventPublisher("tcp://127.0.0.1:*", replay_endpoint=f"ipc://{tmp_path}/replay", topic="kv", num_replayed=3)
    yield made
    made.close()


def replay(socket: Any, first: int) -> list[tuple[int, bytes]]:
    """What is kept from a number on, asked for as vLLM's clients do."""
    socket.send_multipart((b"", first.to_bytes(8, "big")))
    batches: list[tuple[int, bytes]] = []
    while True:
        _empty, number, payload = socket.recv_multipart()
        if number == (-1).to_bytes(8, "big", signed=True):
            assert payload == b""
            return batches
        batches.append((int.from_bytes(number, "big"), payload))


def test_what_is_sent_has_vllms_shapes() -> None:
    sent: list[bytes] = []
    log = KvEventLog(2, sent.append, now_s=lambda: 12.5)
    log.stored([bytes(15) + b"\x01", bytes(15) + b"\x02"], b"", [5, 6, 7, 8])
    log.removed(bytes(15) + b"\x02")
    log.removed(b"\xff" * 16)
    log.stored([bytes(15) + b"\x03"], bytes(15) + b"\x01", [9, 9])
    log.flush()
    log.flush()
    log.cleared()
    stored = {"lora_id": None, "lora_name": None, "medium": "GPU", "block_size": 2, "type": "BlockStored"}
    assert [msgspec.msgpack.decode(batch) for batch in sent] == [
        [12.5, [{"type": "AllBlocksCleared"}], 0],
        [
            12.5,
            [
                {**stored, "block_hashes": [1, 2], "parent_block_hash": None, "token_ids": [5, 6, 7, 8]},
                {"type": "BlockRemoved", "block_hashes": [2, 2**64 - 1], "medium": "GPU"},
                {**stored, "block_hashes": [3], "parent_block_hash": 1, "token_ids": [9, 9]},
            ],
            0,
        ],
        [12.5, [{"type": "AllBlocksCleared"}], 0],
    ]
    assert [len(DECODE(batch).events) for batch in sent] == [1, 3, 1]


def test_subscribers_get_topic_number_and_batch(
    publisher: KvEventPublisher, sockets: Callable[[int, str], Any]
) -> None:
    subscriber = sockets(zmq.SUB, publisher.endpoint)
    subscriber.subscribe("kv")
    for number in range(1000):  # what was sent before the subscription arrived is lost to it
        publisher.publish(b"batch %d" % number)
        if subscriber.poll(20):
            topic, got, batch = subscriber.recv_multipart()
            assert topic == b"kv"
            assert batch == b"batch %d" % int.from_bytes(got, "big")
            return
    pytest.fail("nothing came")


def test_missed_batches_are_sent_again_as_far_as_they_are_kept(
    publisher: KvEventPublisher, sockets: Callable[[int, str], Any]
) -> None:
    for number in range(5):
        publisher.publish(b"%d" % number)
    assert publisher.replay_endpoint is not None
    client = sockets(zmq.DEALER, publisher.replay_endpoint)
    while (latest := replay(client, 4)) == []:  # the batches and the question come in by different ways
        pass
    assert latest == [(4, b"4")]
    assert replay(client, 0) == [(2, b"2"), (3, b"3"), (4, b"4")]
    client.send_multipart((b"", b"nonsense!"))
    assert replay(client, 4) == latest
    assert replay(client, 9) == []


def test_an_endpoint_that_is_taken_is_an_error_that_says_so(publisher: KvEventPublisher) -> None:
    with pytest.raises(ConfigError, match="endpoint of its own"):
        KvEventPublisher(publisher.endpoint)


def test_an_index_built_from_events_is_what_the_cache_holds(
    model_folder: Callable[[str], Path],
    load_tiny: Callable[..., Any],
    driver: type[Any],
    tmp_path: Path,
    sockets: Callable[[int, str], Any],
) -> None:
    replay_endpoint = f"ipc://{tmp_path}/model-replay"
    events = {"endpoint": "tcp://127.0.0.1:*", "replay_endpoint": replay_endpoint}
    model = load_tiny(model_folder("llama"), kv_cache_bytes=60_000, block_size_tokens=4, kv_events=events)
    assert model.info.details["kv_events_endpoint"].startswith("tcp://127.0.0.1:")
    prompts = [tuple([1, 2, 3, 4, 5, 6, 7, 8][: n % 9] + [n] * (n % 30 + 1)) for n in range(40)]
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    driver(model, 3).run([CompletionInput(prompts=(prompt,), params=params) for prompt in prompts])
    pool = model._cache.pool
    held = {int.from_bytes(content[-8:], "big") for content in pool._block_of}
    client = sockets(zmq.DEALER, replay_endpoint)
    index, seen = Index(), 0
    while set(index.tokens) != held:  # the last batches may be on their way
        for number, payload in replay(client, seen):
            assert number == seen
            seen += 1
            index.apply(DECODE(payload))
    hashes = PrefixSharing(mode="shared", block_size=4).hashes
    assert all(wire_hash(hashes(tokens, b"")[-1]) == block for block, tokens in index.tokens.items())
    assert seen > 20
    assert len(index.tokens) > 10
    model.close()
