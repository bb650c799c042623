"""What a worker sends to the serving process: many events a frame, in their order, and figures between them."""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable

import msgspec

from sixfold.core.errors import StepFailed
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
        made_by: The model's class, for messages about what can't be sent.
        give_up: Ends a request, by its id, one of whose increments can't be sent.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._queue: queue.SimpleQueue[tuple[Event, ...] | wire.FromWorker | None] = queue.SimpleQueue()
        self._numbers: dict[str, int] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self.stats: Callable[[], wire.Stats | None] = lambda: None
        self.news: Callable[[], wire.Watched | None] = lambda: None
        self.made_by = "The model"
        self.give_up: Callable[[str], None] = lambda _request_id: None
        self._given_up: set[int] = set()
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
                is_ready = any(isinstance(item, wire.Ready) for item in items)
                if is_ready or not items or time.monotonic() - last_stats_s >= _STATS_EVERY_S:
                    figures = [figure for figure in (self.stats(), self.news()) if figure is not None]
                    if figures:
                        told = b"".join(map(self._encode, figures))
                        data = told + data if is_ready else data + told  # who hears of a ready model has its figures
                        last_stats_s = time.monotonic()
                if data:
                    self._sock.sendall(data)
        except OSError:
            _log.info("the serving process closed the channel")
        except Exception:  # nobody would hear of anything any more, and nobody would know: the channel's end is heard
            _log.exception("nothing can be sent to the serving process")
            self._sock.shutdown(socket.SHUT_RDWR)

    def _take(self) -> list[tuple[Event, ...] | wire.FromWorker | None]:
        try:
            items = [self._queue.get(timeout=_STATS_EVERY_S)]
        except queue.Empty:
            return []
        while not self._queue.empty():
            items.append(self._queue.get())
        return items

    def _encode(self, item: list[Event] | wire.FromWorker) -> bytes:
        if isinstance(item, list):
            item = wire.Outputs([wired for event in item if (wired := self._wire_event(event)) is not None])
        return wire.frame(self._encoder.encode(item))

    def _wire_event(self, event: Event) -> wire.WireEvent | None:
        """None of a request that has been given up."""
        if isinstance(event, Increment):
            number = self._numbers[event.request_id]
            if self._given_up and number in self._given_up:
                return None
            try:
                return wire.WireIncrement(number, msgspec.Raw(self._encoder.encode(event.output)))
            except Exception as error:  # the border between the core and a model's code
                self._given_up.add(number)
                self.give_up(event.request_id)
                return self._unsendable(number, event.request_id, "step", error)
        number = self._numbers.pop(event.request_id)
        if number in self._given_up:
            self._given_up.remove(number)
            return None
        if isinstance(event, Failed):
            return wire.WireFailed.of(number, event.error, event.trace)
        try:
            result = msgspec.Raw(self._encoder.encode(event.result))
        except Exception as error:  # as above
            return self._unsendable(number, event.request_id, "finish", error)
        return wire.WireFinished(number, result, event.usage, event.timing, event.finish_reason, event.trace)

    def _unsendable(self, number: int, request_id: str, method: str, error: Exception) -> wire.WireFailed:
        failure = StepFailed(f"{self.made_by}.{method} returned what can't be sent: {error}")
        _log.error("request %s failed: %s", request_id.partition("/")[0], failure)
        return wire.WireFailed.of(number, failure)


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
