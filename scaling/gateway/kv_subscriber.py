"""Listens to what replicas announce about their caches and keeps the index true to it, also when announcements are missed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import zmq
import zmq.asyncio

from sixfold.scaling.registry import ReplicaRecord
from sixfold.scaling.route.kv_events import decode_batch
from sixfold.scaling.route.kv_index import KvIndex

_LOG = logging.getLogger(__name__)

_REPLAY_TIMEOUT_S = 2.0
_END_OF_REPLAY = -1


class BatchOrder:
    """What to do with each numbered batch of one replica: a pure fold over the numbers."""

    def __init__(self) -> None:
        self.next_number: int | None = None

    def place(self, number: int) -> str:
        """``apply`` it; ``gap``: others are missing before it; ``restart``: the replica counts anew; ``old``: known already."""
        expected = self.next_number
        if expected is None:
            return "apply" if number == 0 else "gap"
        if number == expected:
            return "apply"
        if number > expected:
            return "gap"
        return "restart" if number == 0 else "old"


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcer:
    """Where one replica announces.

    Attributes:
        replica_id: Whose cache it is.
        incarnation: Of its process.
        events: ZMQ address to subscribe to.
        replay: ZMQ address that gives missed batches again; None for none.
    """

    replica_id: str
    incarnation: int
    events: str
    replay: str | None


def announcer_of(record: ReplicaRecord) -> Announcer | None:
    """Where the replica announces, if it does; an address for all interfaces is taken on the replica's host."""
    if record.kv_events is None:
        return None
    try:
        host = urlsplit(record.url).hostname or "127.0.0.1"
    except ValueError:  # no address at all: nobody reaches the replica
        return None
    return Announcer(
        replica_id=record.replica_id,
        incarnation=record.incarnation,
        events=_reachable(record.kv_events, host),
        replay=None if record.kv_replay is None else _reachable(record.kv_replay, host),
    )


class KvSubscriber:
    """One subscription a replica. Used in one event loop; `close` it.

    Args:
        index: Fed with what is announced.
        on_batch: Called after each batch that was applied.
    """

    def __init__(self, index: KvIndex, on_batch: Callable[[], None] = lambda: None) -> None:
        self._index = index
        self._on_batch = on_batch
        self._context = zmq.asyncio.Context()
        self._tasks: dict[Announcer, asyncio.Task[None]] = {}

    def follow(self, records: list[ReplicaRecord]) -> None:
        """Subscribes to these replicas and no others; to be called whenever they change."""
        wanted = {each for record in records if (each := announcer_of(record)) is not None}
        for announcer in [each for each in self._tasks if each not in wanted]:
            self._tasks.pop(announcer).cancel()
            self._index.forget(announcer.replica_id)
        for announcer in wanted - self._tasks.keys():
            self._tasks[announcer] = asyncio.create_task(self._listen(announcer))

    async def close(self) -> None:
        """Ends all subscriptions."""
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._context.destroy(linger=0)

    async def _listen(self, announcer: Announcer) -> None:
        order = BatchOrder()
        try:
            with self._context.socket(zmq.SUB) as socket:
                socket.setsockopt(zmq.SUBSCRIBE, b"")
                socket.connect(announcer.events)
                if announcer.replay is not None:
                    await self._replay(announcer, order, 0)  # what it held before this gateway came
                while True:
                    frames = await socket.recv_multipart()
                    if len(frames) == 3 and len(frames[1]) == 8:
                        await self._take(announcer, order, int.from_bytes(frames[1], "big"), frames[2])
        except (zmq.ZMQError, ValueError, RecursionError) as error:  # the latter two are what decoders raise
            # Another wire format must not pass for an empty cache: it is said, and requests go by guesses.
            self._index.forget(announcer.replica_id)
            _LOG.error("cache events of %s can't be read, its cache is guessed: %s", announcer.replica_id, error)

    async def _take(self, announcer: Announcer, order: BatchOrder, number: int, payload: bytes) -> None:
        match order.place(number):
            case "old":
                return
            case "restart":
                self._index.forget(announcer.replica_id)
            case "gap":
                await self._replay(announcer, order, order.next_number or 0)
                if order.next_number is not None and order.next_number > number:
                    return  # the replay brought it
                if order.next_number != number:
                    # What was removed meanwhile is not known: a wrong picture is worse than an empty one.
                    _LOG.warning("cache events of %s were missed; its picture begins anew", announcer.replica_id)
                    self._index.forget(announcer.replica_id)
            case _:
                pass
        self._apply(announcer, order, number, payload)

    def _apply(self, announcer: Announcer, order: BatchOrder, number: int, payload: bytes) -> None:
        self._index.apply(announcer.replica_id, decode_batch(payload).events)
        order.next_number = number + 1
        self._on_batch()

    async def _replay(self, announcer: Announcer, order: BatchOrder, first: int) -> None:
        """Asks for the batches from ``first`` on and applies what comes in order."""
        if announcer.replay is None:
            return
        with self._context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(announcer.replay)
            await socket.send_multipart((b"", first.to_bytes(8, "big")))  # pyright: ignore[reportUnknownMemberType]  # untyped parts
            try:
                while True:
                    async with asyncio.timeout(_REPLAY_TIMEOUT_S):
                        frames = await socket.recv_multipart()
                    if len(frames) != 3:
                        raise ValueError(f"a replay has {len(frames)} frames instead of 3")
                    _empty, number_bytes, payload = frames
                    number = int.from_bytes(number_bytes, "big", signed=True)
                    if number == _END_OF_REPLAY:
                        return
                    if order.place(number) == "gap":  # older ones are not kept any more: begin with what there is
                        self._index.forget(announcer.replica_id)
                    if order.place(number) != "old":
                        self._apply(announcer, order, number, payload)
            except TimeoutError:
                _LOG.warning("%s does not replay its cache events", announcer.replica_id)


def _reachable(endpoint: str, host: str) -> str:
    for everywhere in ("//*:", "//0.0.0.0:", "//[::]:"):
        endpoint = endpoint.replace(everywhere, f"//{host}:")
    return endpoint
