"""A replica in this very process: for programs that embed Sixfold without HTTP, and for tests of a model end to end."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from sixfold.core.batching.budget import Objective
from sixfold.core.batching.manager import BatchManager, Limits, Snapshot
from sixfold.core.batching.model import ModelInfo, StepModel
from sixfold.core.messages import Event, Failed, Finished, Request
from sixfold.core.runtime.replica import EventStream
from sixfold.core.tokenization.pool import ThreadPiecePool


class LocalReplica:
    """Runs a StepModel on a device thread of this process. Made, used and closed in one event loop.

    Args:
        model: Loaded.
        limits: Bounds.
        objective: What the step budget is moved for.
        num_pool_threads: Threads that prepare inputs.
    """

    def __init__(
        self,
        model: StepModel[Any, Any, Any],
        *,
        limits: Limits | None = None,
        objective: Objective | None = None,
        num_pool_threads: int = 2,
    ) -> None:
        self._model = model
        self._loop = asyncio.get_running_loop()
        self._streams: dict[str, EventStream] = {}
        self._pool: ThreadPiecePool[tuple[Request[Any], object], Any] = ThreadPiecePool(
            lambda work: model.prepare(*work), num_workers=num_pool_threads, max_pending_pieces=65_536
        )
        self._manager = BatchManager(
            model,
            pool=self._pool,
            limits=limits or Limits(),
            objective=objective or Objective(),
            emit=lambda events: self._loop.call_soon_threadsafe(self._deliver, events),
            clock=time.monotonic,
        )
        self._manager.start()

    @property
    def info(self) -> ModelInfo:
        """What the model tells about itself."""
        return self._model.info

    @property
    def snapshot(self) -> Snapshot:
        """The figures after the last step."""
        return self._manager.snapshot

    def submit(self, request: Request[Any]) -> EventStream:
        """Admits a request and returns its events; see `Replica.submit`."""
        request_id = request.request_id
        stream = EventStream(lambda: self._manager.cancel(request_id))
        self._manager.submit(request)
        self._streams[request_id] = stream
        return stream

    def _deliver(self, events: tuple[Event, ...]) -> None:
        by_request: dict[str, list[Event]] = {}
        for event in events:
            by_request.setdefault(event.request_id, []).append(event)
        for request_id, its_events in by_request.items():
            stream = self._streams.get(request_id)
            if stream is None:  # refused by `submit`, which said so
                continue
            if isinstance(its_events[-1], Finished | Failed):
                del self._streams[request_id]
            stream.push(tuple(its_events))

    async def close(self) -> None:
        """Fails what is left and ends the threads."""
        await asyncio.to_thread(self._manager.close)
        await asyncio.to_thread(self._pool.close)
