"""The end of a server's life in good order: who still runs, and when the last one is done."""

from __future__ import annotations

import asyncio
from typing import Protocol

from sixfold.core.errors import NotReady, RequestError


class Abortable(Protocol):
    """A request that runs."""

    def abort(self, reason: RequestError) -> None:
        """Ends it now; its client is told ``reason``."""
        ...


class Drain:
    """Counts running requests; once begun, no new ones are let in. Used in the event loop only."""

    def __init__(self) -> None:
        self.begun = False
        self._running: set[Abortable] = set()
        self._idle: asyncio.Event | None = None

    @property
    def num_running(self) -> int:
        """Requests that entered and have not left."""
        return len(self._running)

    def enter(self, request: Abortable) -> None:
        """Counts a request that begins."""
        self._running.add(request)

    def leave(self, request: Abortable) -> None:
        """Counts a request that is done."""
        self._running.discard(request)
        if not self._running and self._idle is not None:
            self._idle.set()

    def begin(self) -> None:
        """Lets no new requests in from now on."""
        self.begun = True

    def refusal(self) -> NotReady:
        """What new requests are told while the server drains."""
        return NotReady(
            "The server is shutting down and takes no new requests. Try again: another one will answer.",
            code="draining",
            retry_after_s=1.0,
        )

    def abort_all(self) -> None:
        """Ends every running request now."""
        for request in tuple(self._running):
            request.abort(self.refusal())

    async def wait_idle(self, timeout_s: float) -> bool:
        """Waits until no request runs; False if some still do after ``timeout_s``."""
        if not self._running:
            return True
        self._idle = asyncio.Event()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
