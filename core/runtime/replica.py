"""A replica is a loaded model that takes requests; in this process, in a worker process or on another machine alike."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from sixfold.core.batching.model import ModelInfo
from sixfold.core.batching.step_watch import StepNews
from sixfold.core.messages import Event, Failed, Finished, Request


class EventStream:
    """The events of one request, in order; read by one task of the event loop that made it.

    Ends after its Finished or Failed event. Leaving it early without `cancel` keeps the request running, so readers use
    it as ``async with``.

    Args:
        cancel: Called once, in the loop, when the reader leaves before the last event.
    """

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False  # the last event was pushed

    def push(self, events: tuple[Event, ...]) -> None:
        """Adds events and wakes the reader. Called in the loop by the replica."""
        if self._ended:
            return
        self._events.extend(events)
        self._ended = isinstance(events[-1], Finished | Failed)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next_events(self) -> tuple[Event, ...]:
        """Waits for at least one event and returns all that are there; () after the end.

        Reading in bulk lets a server write many chunks of a step with one send.
        """
        while not self._events:
            if self._ended:
                return ()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        events = tuple(self._events)
        self._events.clear()
        return events

    def cancel(self) -> None:
        """Ends the request within one step; harmless after its end."""
        if not self._ended:
            self._ended = True
            self._cancel()
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.cancel()


class ReplicaSnapshot(Protocol):
    """Figures of a replica at one moment, for metrics, routing and autoscaling."""

    @property
    def num_running(self) -> int:
        """Sequences in the running batch."""
        ...

    @property
    def num_waiting(self) -> int:
        """Admitted requests whose sequences wait or are being prepared."""
        ...

    @property
    def queued_units(self) -> int:
        """Admitted work that is not done yet, in units."""
        ...

    @property
    def units_per_s(self) -> float:
        """Measured drain rate; 0 before the first step."""
        ...

    @property
    def metrics(self) -> Mapping[str, float]:
        """The family's own values (`ReplicaModel.stats`) and the manager's counters."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNews:
    """What the steps of a replica did lately.

    Attributes:
        news: In order.
        num_dropped: How many were lost since the watch began, because they came too fast.
    """

    news: Sequence[StepNews]
    num_dropped: int


@runtime_checkable
class WatchedReplica(Protocol):
    """A replica whose batch can be watched; that of another machine need not be one."""

    def watch(self, listener: Callable[[BatchNews], None]) -> Callable[[], None]:
        """Calls the listener with what steps do, until the returned function is called. [loop]

        The replica tells its steps only while somebody watches.
        """
        ...


class Replica(Protocol):
    """The one way to hand a request to a model, wherever it runs."""

    @property
    def info(self) -> ModelInfo:
        """What the loaded model tells about itself."""
        ...

    @property
    def snapshot(self) -> ReplicaSnapshot:
        """The latest figures; at most a step (or 250 ms) old."""
        ...

    def submit(self, request: Request[Any]) -> EventStream:
        """Admits the request and returns its events. [loop]

        Raises:
            QueueFull: At once, with the time after which a retry will find room.
            NotReady: The replica is draining.
        """
        ...
