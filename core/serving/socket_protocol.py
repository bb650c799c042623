"""uvicorn's WebSocket protocol without habits that do not suit: killing slow readers, logging each handshake and all frames."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from sixfold.core.serving.settings import ServerSettings


def socket_protocol(settings: ServerSettings) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn's ``ws`` setting."""
    quiet = logging.getLogger(f"{__name__}.handshakes")
    quiet.setLevel(logging.NOTSET if settings.access_log else logging.WARNING)
    silent = logging.getLogger(f"{__name__}.frames")
    silent.setLevel(logging.WARNING)

    class PatientSocketProtocol(WebSocketsSansIOProtocol):
        """One WebSocket. While the endpoint makes its client wait, nothing is read, so no pong can be expected."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.logger = quiet  # the handshake's line holds the query string
            # At the level debug it would log every header, keys included, and every text message.
            self.conn.logger = silent
            self.conn.debug = False

        async def send(self, message: ASGISendEvent) -> None:
            await super().send(message)
            if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
                self.handshake_complete = True  # refused, with an answer; else uvicorn logs it as our mistake

        def keepalive_timeout(self) -> None:
            if self.read_paused and self.ping_timeout is not None:
                self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
            else:
                super().keepalive_timeout()

    return PatientSocketProtocol
