"""A response of raw bytes that are sent as they are made: audio, video, anything without frames of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sixfold.core.serving.sse import write_ready


class BytesResponse(Response):
    """Streams chunks. Its status is sent with the first, so an earlier failure still gets its own status.

    Args:
        chunks: The body. A later failure cuts the connection: the client must not take the rest for the whole.
        media_type: Of the body.
        headers: Further headers.
        report: Logs what cut the connection.
    """

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        *,
        media_type: str,
        headers: Mapping[str, str],
        report: Callable[[Exception], None],
    ) -> None:
        super().__init__(None, 200, {"cache-control": "no-cache", "x-accel-buffering": "no", **headers}, media_type)
        del self.headers["content-length"]
        self._chunks = chunks
        self._report = report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream to its end; the caller cancels what feeds it when the client leaves."""
        first = await anext(self._chunks, b"")
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

        async def write(data: bytes) -> None:
            if data:
                await send({"type": "http.response.body", "body": data, "more_body": True})

        try:
            await write_ready(_chain(first, self._chunks), write)
        except Exception as failure:  # the border of the stream: without a last chunk the server closes the connection
            self._report(failure)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    try:
        yield first
        async for chunk in rest:
            yield chunk
    finally:
        if isinstance(rest, AsyncGenerator):
            await rest.aclose()
