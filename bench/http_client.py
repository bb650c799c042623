"""The cheapest HTTP client there is in Python: it shares the cores with the servers it measures."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

import httptools


@dataclass(slots=True)
class Answer:
    """One response, with the time at which each part of its body came in (`time.perf_counter`)."""

    started_s: float
    status: int = 0
    parts: list[tuple[float, bytes]] = field(default_factory=list)
    ended_s: float = 0.0

    @property
    def body(self) -> bytes:
        return b"".join(part for _at_s, part in self.parts)


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._answer: Answer | None = None
        self._done: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, port: int) -> Connection:
        connection = cls(port)
        await connection._connect()
        return connection

    async def _connect(self) -> None:
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._port)

    async def request(
        self, method: str, path: str, body: bytes = b"", content_type: str = "application/json"
    ) -> Answer:
        """Sends one request and waits for the whole answer.

        A connection that the server closed after its last answer (llama.cpp does, without saying so) is opened again; the
        time that takes counts.

        Raises:
            ConnectionError: The server closed the connection first.
        """
        assert self._transport is not None
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._answer = answer = Answer(started_s=time.perf_counter())
        try:
            await self._exchange(head.encode() + body)
        except ConnectionError:
            if answer.parts:
                raise
            await self._connect()
            await self._exchange(head.encode() + body)
        return answer

    async def _exchange(self, request: bytes) -> None:
        assert self._transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():
            raise ConnectionError("the server has closed the connection")
        self._transport.write(request)
        await self._done

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only

    def data_received(self, data: bytes) -> None:
        assert self._parser is not None
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError(f"the server closed the connection: {exc}"))

    # httptools callbacks

    def on_body(self, body: bytes) -> None:
        assert self._answer is not None
        self._answer.parts.append((time.perf_counter(), body))

    def on_message_complete(self) -> None:
        assert self._answer is not None
        assert self._parser is not None
        assert self._done is not None
        self._answer.status = self._parser.get_status_code()
        self._answer.ended_s = time.perf_counter()
        if not self._done.done():
            self._done.set_result(None)
