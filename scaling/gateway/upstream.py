"""HTTP to replicas: one try of one request, whose failures say what is known about whether the replica has begun."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace

import aiohttp
from yarl import URL

Headers = Sequence[tuple[str, str]]

_KEEP_ALIVE_S = 4.0
"""Below the 5 s of a bare uvicorn: a connection that the replica is about to close must not be used again."""
_WHOLE_BYTES = 1024 * 1024
"""Answers of a known length up to this are read whole before the client sees a byte, so that they can be tried again."""
_OWN_HEADERS = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")


class ReplicaFailed(Exception):
    """The connection could not be made, or was lost before the first byte of the answer's body.

    Args:
        message: What happened, for the log.
        begun: Whether the replica may have begun with the request.
    """

    def __init__(self, message: str, *, begun: bool) -> None:
        super().__init__(message)
        self.begun = begun


class AnswerTorn(Exception):
    """The connection was lost in the middle of an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """What is sent to a replica.

    Attributes:
        method: Upper case.
        target: Path and query as the client sent them.
        headers: Without those that belong to a connection.
        body: All of it.
    """

    method: str
    target: str
    headers: Headers
    body: bytes

    def with_header(self, name: str, value: str) -> Outgoing:
        """The same with one header more."""
        return replace(self, headers=(*self.headers, (name, value)))


class Answer:
    """An answer whose head and first bytes are here. Must be closed.

    Attributes:
        status: As the replica sent it.
        headers: All of them, in order.
        first: The beginning of its body; all of it if ``whole``.
        whole: Whether nothing follows.
    """

    def __init__(self, response: aiohttp.ClientResponse, first: bytes, *, whole: bool) -> None:
        self._response = response
        self.status = response.status
        self.headers: Headers = [(name, value) for name, value in response.headers.items()]
        self.first = first
        self.whole = whole

    def header(self, name: str) -> str | None:
        """One header's value."""
        return self._response.headers.get(name)

    async def rest(self) -> AsyncIterator[bytes]:
        """What follows ``first``, as it arrives.

        Raises:
            AnswerTorn: The connection was lost.
        """
        content = self._response.content
        while not self.whole:
            try:
                chunk = await content.readany()
            except (aiohttp.ClientError, OSError) as error:
                raise AnswerTorn(str(error) or type(error).__name__) from error
            if not chunk:
                self.whole = True
                return
            yield chunk

    async def read(self) -> bytes:
        """All of its body.

        Raises:
            AnswerTorn: The connection was lost.
        """
        return self.first + b"".join([chunk async for chunk in self.rest()])

    def close(self) -> None:
        """Gives the connection back if all was read, else ends it: the replica sees that nobody listens any more."""
        if self.whole:
            self._response.release()
        else:
            self._response.close()


class Upstream:
    """Connections to all replicas. Used in one event loop; an async context manager.

    Args:
        connect_timeout_s: How long connecting may take.
    """

    def __init__(self, *, connect_timeout_s: float) -> None:
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Upstream:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_OWN_HEADERS,
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, url: str, outgoing: Outgoing) -> Answer:
        """Sends a request and returns when the first bytes of its answer are here.

        Raises:
            ReplicaFailed: There is no answer.
        """
        assert self._session is not None
        response: aiohttp.ClientResponse | None = None
        try:
            response = await self._session.request(
                outgoing.method,
                URL(url + outgoing.target, encoded=True),
                headers=outgoing.headers,
                data=outgoing.body or None,
                allow_redirects=False,
            )
            first, whole = await _first_bytes(response)
        except aiohttp.ClientConnectorError as error:
            raise ReplicaFailed(f"no connection: {error.os_error or error}", begun=False) from error
        except aiohttp.ConnectionTimeoutError as error:
            raise ReplicaFailed("no connection in time", begun=False) from error
        except ValueError as error:  # what published this replica wrote no address
            raise ReplicaFailed(f"{url!r} is no address: {error}", begun=False) from error
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            if response is not None:
                response.close()
            raise ReplicaFailed(str(error) or type(error).__name__, begun=True) from error
        except BaseException:
            if response is not None:
                response.close()
            raise
        return Answer(response, first, whole=whole)

    async def get(self, url: str, path: str, headers: Mapping[str, str], *, timeout_s: float) -> tuple[int, bytes]:
        """A short answer to a probe.

        Raises:
            ReplicaFailed: There is none in time.
        """
        outgoing = Outgoing(method="GET", target=path, headers=tuple(headers.items()), body=b"")
        try:
            async with asyncio.timeout(timeout_s):
                with contextlib.closing(await self.send(url, outgoing)) as answer:
                    return answer.status, await answer.read()
        except AnswerTorn as error:
            raise ReplicaFailed(str(error), begun=True) from error
        except TimeoutError as error:
            raise ReplicaFailed("no answer in time", begun=True) from error


async def _first_bytes(response: aiohttp.ClientResponse) -> tuple[bytes, bool]:
    length = response.content_length
    if length is not None and length <= _WHOLE_BYTES:
        return await response.content.read(), True
    first = await response.content.readany()
    return first, response.content.at_eof()
