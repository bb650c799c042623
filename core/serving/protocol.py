"""uvicorn's HTTP protocol with what it lacks: bounds of the time and size of headers, trailers and chunk framing, one Host a
request, and refusals in OpenAI's shape.

The parser (llhttp, in its strict mode) refuses what smuggling needs: a length beside chunks, two lengths, other codings,
folded headers, bare CR or LF, spaces before colons.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sixfold.core.serving.error_responses import ErrorBody, ErrorDetail
from sixfold.core.serving.settings import ServerSettings

_INVALID = "This is no valid HTTP request, or one that servers could read in two ways. Send it as RFC 9112 has it."
_TOO_LARGE = "The request line and headers are larger than this server takes. Send fewer or shorter headers."


def bounded_protocol(settings: ServerSettings) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn's ``http`` setting."""
    return type("BoundedHttpProtocol", (_BoundedHttpProtocol,), {"settings": settings})


class _BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. A client that dribbles headers or sends endless ones is cut off.

    Attributes:
        settings: Its bounds; set by `bounded_protocol`, since uvicorn makes the instances.
    """

    settings: ServerSettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_timer: asyncio.TimerHandle | None = None
        self._num_quiet_bytes = 0
        self._in_headers = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._header_timer = self.loop.call_later(self.settings.header_timeout_s, self._cut_off)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # What brings the body no further: headers, and behind them extensions of chunks and trailers. The check is after
        # the parser: whole headers that came in one read are bounded by the size of a read.
        self._num_quiet_bytes += len(data)
        super().data_received(data)
        if self._num_quiet_bytes > self.settings.max_header_bytes:
            self._refuse()
        elif self._in_headers and self._header_timer is None:
            self._header_timer = self.loop.call_later(self.settings.header_timeout_s, self._cut_off)

    def on_message_begin(self) -> None:
        self._in_headers = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        # uvicorn would add trailers to the headers of the request that runs already: its key was read from these.
        if self._in_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._num_quiet_bytes = 0
        self._disarm()
        assert self.parser is not None, "it calls this"
        num_hosts = sum(name == b"host" for name, _ in self.headers)
        if num_hosts > 1 or (num_hosts == 0 and self.parser.get_http_version() == "1.1"):
            raise ValueError("a request has one Host")  # the parser stops, and uvicorn answers 400 (RFC 9112, 3.2)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_quiet_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_quiet_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._answer("400 Bad Request", "invalid_http", _INVALID)

    def _disarm(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _cut_off(self) -> None:
        self._header_timer = None
        # uvicorn declares the cycle as always there; it is None until the first request.
        if self.cycle is not None and not self.cycle.response_complete:  # pyright: ignore[reportUnnecessaryComparison]
            # A pipelined request dribbles in behind one that runs: look again later.
            self._header_timer = self.loop.call_later(self.settings.header_timeout_s, self._cut_off)
        elif not self.transport.is_closing():
            self.transport.close()

    def _refuse(self) -> None:
        if self._in_headers:
            self._answer("431 Request Header Fields Too Large", "headers_too_large", _TOO_LARGE)
        elif not self.transport.is_closing():
            self.transport.close()  # its request runs, and may have begun to answer

    def _answer(self, status: str, code: str, message: str) -> None:
        detail = ErrorDetail(message=message, type="invalid_request_error", param=None, code=code)
        body = msgspec.json.encode(ErrorBody(detail))
        head = (
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
