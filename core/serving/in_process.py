"""Runs plain LitAPIs, those without a family, in threads of the serving process: no manager process, nothing pickled.

LitServe's own loops do the work, so all that it supports (batching, streams, custom loops) stays. Only the two queues
between HTTP and loop are replaced.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import MutableMapping
from typing import Any

import litserve as ls
from litserve.loops import inference_worker
from litserve.transport.base import MessageTransport
from litserve.utils import LitAPIStatus, LoopResponseType, ResponseBufferItem, WorkerSetupStatus

STOP: tuple[None, ...] = (None,) * 4
"""What ends a loop of LitServe."""
_JOIN_S = 2.0


class RequestQueue(queue.Queue[Any]):
    """Requests of one LitAPI; LitServe's handlers put, its loops get."""


class InProcessTransport(MessageTransport):  # type: ignore[misc]  # litserve ships no types
    """Carries a loop's answers to the handlers that wait for them, over ``call_soon_threadsafe``.

    Args:
        buffer: LitServe's table of waiting handlers, by request.
        loop: The event loop that owns the table.
    """

    def __init__(self, buffer: MutableMapping[str, ResponseBufferItem], loop: asyncio.AbstractEventLoop) -> None:
        self._buffer = buffer
        self._loop = loop

    def send(self, item: Any, consumer_id: int) -> None:
        """Called by a worker thread with one answer, or one part of it."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, item)

    async def areceive(self, timeout: int | None = None, consumer_id: int | None = None) -> dict[str, Any]:
        """Never called: answers are pushed."""
        raise NotImplementedError("answers are pushed")

    def _deliver(self, item: Any) -> None:
        uid, (data, status, kind, worker_id) = item
        waiting = self._buffer.get(uid)
        if waiting is None:  # its client went away
            return
        if status == LitAPIStatus.START:
            waiting.worker_id = int(worker_id)
        elif kind == LoopResponseType.STREAMING:
            waiting.response_queue.append((data, status))
            waiting.event.set()
        else:
            waiting.response = (data, status)
            waiting.event.set()


class PlainWorkers:
    """The threads that run plain LitAPIs, one each. Started and stopped in the event loop."""

    def __init__(self) -> None:
        self._threads: list[tuple[threading.Thread, RequestQueue]] = []
        self.setup_status: dict[str, str] = {}

    def start(
        self, api: ls.LitAPI, device: str, requests: RequestQueue, transport: InProcessTransport, callbacks: Any
    ) -> None:
        """Starts the thread that sets the LitAPI up and runs LitServe's loop for it."""
        endpoint = api.api_path.split("/")[-1]
        self.setup_status[f"{endpoint}_0"] = WorkerSetupStatus.STARTING
        thread = threading.Thread(
            target=inference_worker,
            args=(api, device, 0, requests, transport, self.setup_status, callbacks, False),
            name=f"litapi-{endpoint}",
            daemon=True,  # a predict that never returns must not keep the process alive
        )
        thread.start()
        self._threads.append((thread, requests))

    @property
    def ready(self) -> bool:
        """Whether every LitAPI is set up."""
        return all(status == WorkerSetupStatus.READY for status in self.setup_status.values())

    async def stop(self) -> None:
        """Ends each loop after the request that it is at."""
        for _, requests in self._threads:
            requests.put(STOP)
        for thread, _ in self._threads:
            await asyncio.to_thread(thread.join, _JOIN_S)
