"""The cheapest HTTP client there is in Python: it shares the machine with the servers that it measures."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import cast
from urllib.parse import urlsplit

import httptools

from sixfold.core.errors import UsageError

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server is.

    Attributes:
        host: Name or number.
        port: Its port.
        tls: Whether to speak TLS.
        prefix: Path that stands before every other, without a slash at its end.
        headers: Sent with each request.
    """

    host: str = "127.0.0.1"
    port: int
    tls: bool = False
    prefix: str = ""
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_HEADERS)

    @classmethod
    def of(cls, url: str, headers: Mapping[str, str] = _NO_HEADERS) -> Address:
        """Reads ``http://host:port/prefix``; a ``/v1`` at the end is dropped, since paths bring it.

        Raises:
            UsageError: It is no such address.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UsageError(f"{url!r} is no address: {error}.") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is no address of a server. Give one such as http://127.0.0.1:8000.")
        tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(host=parts.hostname, port=port or (443 if tls else 80), tls=tls, prefix=prefix, headers=headers)


@dataclass(slots=True)
class Answer:
    """One response, with the time at which each part of its body came in (`time.perf_counter`).

    Names of headers are in lower case.
    """

    started_s: float
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict[str, str])
    parts: list[tuple[float, bytes]] = field(default_factory=list[tuple[float, bytes]])
    ended_s: float = 0.0

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(part for _at_s, part in self.parts)


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._answer: Answer | None = None
        self._done: asyncio.Future[None] | None = None
        own = {"Host": f"{address.host}:{address.port}", **address.headers}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in own.items())

    @classmethod
    async def open(cls, address: Address | int) -> Connection:
        """Connects; a number is a port of this machine.

        Raises:
            OSError: There is no connection.
        """
        connection = cls(Address(port=address) if isinstance(address, int) else address)
        await connection._connect()
        return connection

    async def _connect(self) -> None:
        address = self._address
        context = ssl.create_default_context() if address.tls else None
        await asyncio.get_running_loop().create_connection(lambda: self, address.host, address.port, ssl=context)

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return self._transport is not None and not self._transport.is_closing() and self._done is None

    async def request(
        self, method: str, path: str, body: bytes = b"", content_type: str = "application/json"
    ) -> Answer:
        """Sends one request and waits for the whole answer.

        A connection that the server closed after its last answer (llama.cpp does, without saying so) is opened again; the
        time that takes counts.

        Raises:
            ConnectionError: The server closed the connection first.
        """
        head = (
            f"{method} {self._address.prefix}{path} HTTP/1.1\r\n{self._head}Content-Type: {content_type}\r\n"
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
            self._done = None
            raise ConnectionError("the server has closed the connection")
        self._transport.write(request)
        try:
            await self._done
        except asyncio.CancelledError:  # half an answer is under way: nothing else can be asked here
            self._transport.abort()
            raise
        finally:
            self._done = None

    def close(self) -> None:
        """Hangs up."""
        if self._transport is not None:
            self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only

    def data_received(self, data: bytes) -> None:
        """A part of an answer."""
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"the server does not speak HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The server hung up."""
        self._fail(ConnectionError(f"the server closed the connection: {exc}"))

    def _fail(self, error: ConnectionError) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)

    # httptools callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        assert self._answer is not None
        self._answer.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        assert self._answer is not None
        self._answer.parts.append((time.perf_counter(), body))

    def on_message_complete(self) -> None:
        """The answer has ended."""
        assert self._answer is not None
        assert self._parser is not None
        self._answer.status = self._parser.get_status_code()
        self._answer.ended_s = time.perf_counter()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
