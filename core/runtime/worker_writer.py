"""What a worker sends to the serving process: many events a frame, in their order, and figures between them."""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable

import msgspec

from sixfold.core.messages import Event, Failed, Increment
from sixfold.core.runtime import wire

_log = logging.getLogger(__name__)

_STATS_EVERY_S = 0.1


class Writer:
    """Sends messages from a thread of its own, all that are ready in one frame.

    Args:
        sock: Connected to the serving process.

    Attributes:
        stats: Set to a function that returns the manager's figures if they changed; asked at most every 100 ms.
        news: Likewise, what steps did, while somebody watches.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._queue: queue.SimpleQueue[tuple[Event, ...] | wire.FromWorker | None] = queue.SimpleQueue()
        self._numbers: dict[str, int] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self.stats: Callable[[], wire.Stats | None] = lambda: None
        self.news: Callable[[], wire.Watched | None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def register(self, request_id: str, number: int) -> None:
        """Makes a request's number known before its first event."""
        self._numbers[request_id] = number

    def put(self, item: tuple[Event, ...] | wire.FromWorker) -> None:
        """Sends events or a message soon. [any thread]"""
        self._queue.put(item)

    def close(self) -> None:
        """Sends what is left and ends."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        last_stats_s = 0.0
        open_ = True
        try:
            while open_:
                items = self._take()
                open_ = None not in items
                data = b"".join(map(self._encode, _merged([item for item in items if item is not None])))
                if not items or time.monotonic() - last_stats_s >= _STATS_EVERY_S:
                    figures = [figure for figure in (self.stats(), self.news()) if figure is not None]
                    if figures:
                        data += b"".join(map(self._encode, figures))
                        last_stats_s = time.monotonic()
                if data:
                    self._sock.sendall(data)
        except OSError:
            _log.info("the serving process closed the channel")

    def _take(self) -> list[tuple[Event, ...] | wire.FromWorker | None]:
        try:
            items = [self._queue.get(timeout=_STATS_EVERY_S)]
        except queue.Empty:
            return []
        while not self._queue.empty():
            items.append(self._queue.get())
        return items

    def _encode(self, item: list[Event] | wire.FromWorker) -> bytes:
        message = wire.Outputs([self._wire_event(event) for event in item]) if isinstance(item, list) else item
        return wire.frame(self._encoder.encode(message))

    def _wire_event(self, event: Event) -> wire.WireEvent:
        if isinstance(event, Increment):
            number = self._numbers[event.request_id]
            return wire.WireIncrement(number, msgspec.Raw(self._encoder.encode(event.output)))
        number = self._numbers.pop(event.request_id)
        if isinstance(event, Failed):
            return wire.WireFailed.of(number, event.error, event.trace)
        result = msgspec.Raw(self._encoder.encode(event.result))
        return wire.WireFinished(number, result, event.usage, event.timing, event.finish_reason, event.trace)


def _merged(items: list[tuple[Event, ...] | wire.FromWorker]) -> list[list[Event] | wire.FromWorker]:
    """Runs of events become one message; other messages keep their place."""
    merged: list[list[Event] | wire.FromWorker] = []
    for item in items:
        if not isinstance(item, tuple):
            merged.append(item)
        elif merged and isinstance(merged[-1], list):
            merged[-1].extend(item)
        else:
            merged.append(list(item))
    return merged
