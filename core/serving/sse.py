"""Server-sent events: frames as bytes, and the response that writes them, one send per step."""

from __future__ import annotations

import asyncio
import types
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sixfold.core.errors import RequestError
from sixfold.core.serving.error_responses import error_json

DONE = b"data: [DONE]\n\n"
"""The frame that ends a stream of data frames."""

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: proxies see traffic, clients see nothing."""


def data_frame(payload: bytes) -> bytes:
    """A frame with JSON of one line and no event name."""
    return b"data: " + payload + b"\n\n"


def event_frame(event: str, payload: bytes) -> bytes:
    """A frame with an event name."""
    return b"event: " + event.encode() + b"\ndata: " + payload + b"\n\n"


def error_frame(error: RequestError) -> bytes:
    """The frame that tells a client about a failure after its stream began."""
    return data_frame(error_json(error))


class SseResponse(Response):
    """Writes ready-made frames; all frames that are there at once go out with one send.

    Args:
        chunks: The frames. Their exceptions become an error frame and ``data: [DONE]``.
        explain: Turns an exception of ``chunks`` into the error that the client may read; logs what it must not.
        keep_alive_s: Sends a comment when nothing was sent for so long; None for never.
    """

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        *,
        explain: Callable[[Exception], RequestError],
        keep_alive_s: float | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.raw_headers = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        self._chunks = chunks
        self._explain = explain
        self._keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream to its end; the caller cancels what feeds it when the client leaves."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        writer = _Writer(send)
        ticker = asyncio.create_task(writer.keep_alive(self._keep_alive_s)) if self._keep_alive_s else None
        last = b""
        try:
            await write_ready(self._chunks, writer.write)
        except Exception as failure:  # the border of the stream: the status is sent, so it must end in a frame
            last = error_frame(self._explain(failure)) + DONE
        finally:
            if ticker is not None:
                ticker.cancel()
        await send({"type": "http.response.body", "body": last, "more_body": False})


class _Writer:
    """Sends parts of a body and remembers whether any went out, for the keep-alive."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._wrote = False

    async def write(self, data: bytes) -> None:
        self._wrote = True
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def keep_alive(self, interval_s: float) -> None:
        while True:
            self._wrote = False
            await asyncio.sleep(interval_s)
            if not self._wrote:
                await self.write(KEEP_ALIVE)


async def write_ready(chunks: AsyncIterator[bytes], write: Callable[[bytes], Awaitable[None]]) -> None:
    """Writes all chunks; those that come without waiting are joined into one write.

    Each ``__anext__`` is run until it would wait. Only then is what has gathered written, and the same ``__anext__`` goes
    on. So a chunk is never held back for a later one, and a step with many chunks costs one system call.
    """
    gathered = bytearray()
    try:
        while True:
            pull = _Pull(chunks.__anext__())
            if not pull.try_now():
                if gathered:
                    ready, gathered = bytes(gathered), bytearray()
                    try:
                        await write(ready)
                    except BaseException:
                        await pull.abandon()
                        raise
                await pull.rest()
            gathered += pull.value
    except StopAsyncIteration:
        pass
    finally:
        if gathered:
            await write(bytes(gathered))
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


class _Pull:
    """One awaitable that can be tried before it is awaited: PEP 492's protocol, driven by hand."""

    def __init__(self, awaitable: Awaitable[bytes]) -> None:
        self._steps: Generator[Any, Any, bytes] = awaitable.__await__()
        self._waits_for: Any = None
        self.value = b""

    def try_now(self) -> bool:
        """Runs until the value is there (True) or until it must wait (False)."""
        try:
            self._waits_for = next(self._steps)
        except StopIteration as done:
            self.value = done.value
            return True
        return False

    @types.coroutine
    def rest(self) -> Generator[Any, Any, None]:
        """Waits for the value after `try_now` said False: hands what it waits for to the event loop."""
        waits_for = self._waits_for
        try:
            while True:
                try:
                    sent = yield waits_for
                except BaseException as thrown:  # a cancellation belongs to the one who waits
                    waits_for = self._steps.throw(thrown)
                else:
                    waits_for = self._steps.send(sent)
        except StopIteration as done:
            self.value = done.value

    async def abandon(self) -> None:
        """Cancels the wait after `try_now` said False, so that the iterator can be closed."""
        try:
            self._waits_for = self._steps.throw(asyncio.CancelledError())
            await self.rest()
        except (asyncio.CancelledError, StopIteration, StopAsyncIteration):
            pass
