"""uvicorn's HTTP protocol with two bounds that it lacks: how long and how large request headers may be."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sixfold.core.serving.error_responses import ErrorBody, ErrorDetail
from sixfold.core.serving.settings import ServerSettings

_TOO_LARGE = "The request line and headers are larger than this server takes. Send fewer or shorter headers."


def bounded_protocol(settings: ServerSettings) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn's ``http`` setting."""

    class BoundedHttpProtocol(HttpToolsProtocol):
        """One connection. A client that dribbles headers or sends endless ones is cut off."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._header_timer: asyncio.TimerHandle | None = None
            self._num_header_bytes = 0
            self._in_headers = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
            super().connection_made(transport)
            self._header_timer = self.loop.call_later(settings.header_timeout_s, self._cut_off)

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self._in_headers:
                return
            # The check is after the parser: whole headers that came in one read are bounded by the size of a read.
            self._num_header_bytes += len(data)
            if self._num_header_bytes > settings.max_header_bytes:
                self._refuse()
            elif self._header_timer is None:
                self._header_timer = self.loop.call_later(settings.header_timeout_s, self._cut_off)

        def on_message_begin(self) -> None:
            self._in_headers = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_headers = False
            self._num_header_bytes = 0
            self._disarm()
            super().on_headers_complete()

        def _disarm(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _cut_off(self) -> None:
            self._header_timer = None
            # uvicorn declares the cycle as always there; it is None until the first request.
            if self.cycle is not None and not self.cycle.response_complete:  # pyright: ignore[reportUnnecessaryComparison]
                # A pipelined request dribbles in behind one that runs: look again later.
                self._header_timer = self.loop.call_later(settings.header_timeout_s, self._cut_off)
            elif not self.transport.is_closing():
                self.transport.close()

        def _refuse(self) -> None:
            detail = ErrorDetail(message=_TOO_LARGE, type="invalid_request_error", param=None, code="headers_too_large")
            body = msgspec.json.encode(ErrorBody(detail))
            head = (
                "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()

    return BoundedHttpProtocol
