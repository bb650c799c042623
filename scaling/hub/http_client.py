"""Calls between hub, agents and the store: JSON over HTTP/1.1, one connection a call, with one deadline for all of it.

h11 over asyncio's streams: it is there anyway, and these calls are a few a second.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from urllib.parse import urlsplit

import h11

from sixfold.core.errors import SixfoldError

_READ_BYTES = 64 * 1024
_MAX_ANSWER_BYTES = 64 * 1024 * 1024


class CallFailed(SixfoldError):
    """No answer with status 200.

    Args:
        message: What happened.
        sent: Whether the other side may have acted on the call.
    """

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class HttpClient:
    """Calls one base address.

    Args:
        url: ``http://host:port``, a path in it is kept in front.
        timeout_s: For connecting, sending and the whole answer together.
        tls: For https; the system's certificates unless given.
        token: Sent as ``Authorization: Bearer``.
    """

    def __init__(
        self, url: str, *, timeout_s: float, tls: ssl.SSLContext | None = None, token: str | None = None
    ) -> None:
        parts = urlsplit(url)
        self.url = url
        self._host = parts.hostname or ""
        self._path = parts.path.rstrip("/")
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._timeout_s = timeout_s
        self._headers = [("Host", parts.netloc.rpartition("@")[2]), ("Connection", "close")]
        if token is not None:
            self._headers.append(("Authorization", f"Bearer {token}"))

    async def call(self, method: str, path: str, body: bytes = b"", *, authorization: str | None = None) -> bytes:
        """The body of an answer with status 200.

        Args:
            method: Upper case.
            path: Below the base address.
            body: Of the request, as JSON.
            authorization: Sent as it is in place of the client's token.

        Raises:
            CallFailed: No connection, no answer in time, or another status.
        """
        answer = bytearray()
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self.stream(method, path, body, authorization=authorization) as chunks,
            ):
                async for chunk in chunks:
                    answer += chunk
                    if len(answer) > _MAX_ANSWER_BYTES:
                        raise CallFailed(f"{self.url} answers with more than {_MAX_ANSWER_BYTES} bytes")
        except TimeoutError as error:
            raise CallFailed(f"{self.url} did not answer within {self._timeout_s} s") from error
        return bytes(answer)

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, body: bytes = b"", *, authorization: str | None = None
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """The body of an answer with status 200, as it comes; without a deadline. Arguments as of `call`.

        Raises:
            CallFailed: As `call`.
        """
        try:
            reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        except OSError as error:
            raise CallFailed(f"{self.url} cannot be reached: {error}", sent=False) from error
        try:
            headers = self._headers if authorization is None else [*self._headers, ("Authorization", authorization)]
            request = h11.Request(
                method=method,
                target=self._path + path,
                headers=[*headers, ("Content-Type", "application/json"), ("Content-Length", str(len(body)))],
            )
            async with aclosing(self._exchange(reader, writer, request, body)) as chunks:
                yield chunks
        except (OSError, h11.ProtocolError) as error:
            raise CallFailed(f"{self.url}: {error}") from error
        finally:
            writer.close()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: h11.Request, body: bytes
    ) -> AsyncGenerator[bytes]:
        connection = h11.Connection(h11.CLIENT)
        for part in (request, h11.Data(body), h11.EndOfMessage()):
            writer.write(connection.send(part) or b"")
        await writer.drain()
        status, failure = 200, bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(_READ_BYTES))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                if status == 200:
                    yield bytes(event.data)
                elif len(failure) < _READ_BYTES:
                    failure += event.data
            elif isinstance(event, h11.EndOfMessage):
                if status != 200:
                    raise CallFailed(f"{self.url} answers {status}: {failure.decode(errors='replace')[:300]}")
                return
