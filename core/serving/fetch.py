"""Gets what a request names by URL, without letting requests reach into the operator's network (SSRF).

h11 over asyncio's streams, not a client library: the connection must go to the very address that was checked, no proxy or
netrc of the environment may step in, and giving up must not leave a thread behind.
"""

from __future__ import annotations

import asyncio
import binascii
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from typing import TypeAlias
from urllib.parse import unquote_to_bytes, urljoin

import h11

from sixfold.core.errors import InvalidRequest
from sixfold.core.serving.api import Fetched
from sixfold.core.serving.fetch_policy import HttpUrl, check_allowed, is_public, parse_http_url

Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of (host, port)."""

_MAX_REDIRECTS = 3
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_MAX_HEADER_BYTES = 64 * 1024
_READ_BYTES = 64 * 1024
_THREADED_BYTES = 1024 * 1024
_MAX_ADDRESSES = 4


class Fetcher:
    """Fetches for all calls of a server.

    Args:
        allowed: ``server.fetch_urls``.
        timeout_s: For one fetch, with its redirects.
        resolve: Finds addresses; the system's resolver, in threads of its own, unless given.
        may_reach: Whether an address may be connected to.
    """

    def __init__(
        self,
        allowed: Sequence[str],
        *,
        timeout_s: float,
        resolve: Resolve | None = None,
        may_reach: Callable[[str], bool] = is_public,
    ) -> None:
        self._allowed = tuple(allowed)
        self._timeout_s = timeout_s
        self._resolve = resolve or self._ask_system
        self._may_reach = may_reach

    async def fetch(self, url: str, *, max_bytes: int) -> Fetched:
        """Gets a URL's content.

        Raises:
            InvalidRequest: It is not allowed, does not answer in time, answers with an error or is too large.
        """
        if url[:5].lower() == "data:":
            return await _decode_data_url(url, max_bytes)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._follow(url, max_bytes)
        except TimeoutError:
            reason = f"the host did not send it within {self._timeout_s:g} s"
        except ssl.SSLError:
            reason = "the host has no valid certificate"
        except (OSError, EOFError):
            reason = "the host cannot be reached"
        except h11.RemoteProtocolError:
            reason = "the host does not speak proper HTTP"
        raise _failed(reason)

    async def _follow(self, url: str, max_bytes: int) -> Fetched:
        for _ in range(_MAX_REDIRECTS + 1):
            parts = parse_http_url(url)
            check_allowed(parts, self._allowed)
            answer = await self._get(parts, max_bytes)
            if isinstance(answer, Fetched):
                return answer
            url = urljoin(url, answer)
        raise _failed(f"it redirects more than {_MAX_REDIRECTS} times")

    async def _get(self, url: HttpUrl, max_bytes: int) -> Fetched | str:
        """The content, or where the host redirects to."""
        addresses = await self._resolve(url.host, url.port)
        if not addresses or not all(map(self._may_reach, addresses)):
            # Says the same for both, so that answers do not map the operator's network.
            raise _failed("the host cannot be reached")
        reader, writer = await self._connect(url, addresses[:_MAX_ADDRESSES])
        with closing(writer):
            return await _exchange(url, reader, writer, max_bytes)

    async def _connect(
        self, url: HttpUrl, addresses: Sequence[str]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        secure = url.scheme == "https"
        failure: OSError | None = None
        for address in addresses:
            try:
                return await asyncio.open_connection(
                    address,
                    url.port,
                    ssl=self._tls if secure else None,
                    server_hostname=url.host if secure else None,
                )
            except OSError as error:
                failure = error
        assert failure is not None, "there is at least one address"
        raise failure

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    @cached_property
    def _resolver_threads(self) -> ThreadPoolExecutor:
        # Of their own: a name server that does not answer must not hold up others' work in the loop's threads.
        return ThreadPoolExecutor(4, thread_name_prefix="resolve")

    async def _ask_system(self, host: str, port: int) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._resolver_threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [str(address[0]) for *_, address in found]


async def _exchange(
    url: HttpUrl, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, max_bytes: int
) -> Fetched | str:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEADER_BYTES)
    headers = [("host", url.authority), ("user-agent", "sixfold"), ("accept", "*/*"), ("accept-encoding", "identity")]
    request = h11.Request(method="GET", target=url.target, headers=[*headers, ("connection", "close")])
    writer.write(connection.send(request) or b"")
    writer.write(connection.send(h11.EndOfMessage()) or b"")
    body = bytearray()
    content_type = ""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Response):
            found = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
            if event.status_code in _REDIRECTS and "location" in found:
                return found["location"]
            _check(event.status_code, found, max_bytes)
            content_type = found.get("content-type", "")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > max_bytes:
                raise _too_large(max_bytes)
        elif isinstance(event, h11.EndOfMessage):
            return Fetched(bytes(body), content_type or "application/octet-stream")
        elif not isinstance(event, h11.InformationalResponse):
            raise EOFError("the connection ended")


def _check(status: int, headers: dict[str, str], max_bytes: int) -> None:
    if status != 200:
        raise _failed(f"the host answered with the status {status}")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise _failed("the host compresses it though it was asked not to")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_large(max_bytes)


async def _decode_data_url(url: str, max_bytes: int) -> Fetched:
    head, comma, payload = url[5:].partition(",")
    if not comma:
        raise InvalidRequest("The data: URL has no comma before its content.")
    is_base64 = head.lower().endswith(";base64")
    content_type = head[: -len(";base64")] if is_base64 else head
    if len(payload) > max_bytes * (4 / 3 if is_base64 else 3) + 4:
        raise _too_large(max_bytes)

    def decode() -> bytes:
        raw = unquote_to_bytes(payload) if not is_base64 or "%" in payload else payload.encode()
        return binascii.a2b_base64(raw, strict_mode=True) if is_base64 else raw

    try:
        data = await asyncio.to_thread(decode) if len(payload) > _THREADED_BYTES else decode()
    except (binascii.Error, UnicodeEncodeError):
        raise InvalidRequest("The data: URL is not valid base64.") from None
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    return Fetched(data, content_type.strip().lower() or "text/plain")


def _too_large(max_bytes: int) -> InvalidRequest:
    return InvalidRequest(f"What the URL names is larger than the {max_bytes} bytes that are taken here. Send less.")


def _failed(reason: str) -> InvalidRequest:
    return InvalidRequest(f"The URL cannot be fetched: {reason}. Check it, or send the content as a data: URL.")
