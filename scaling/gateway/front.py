"""What meets a request at the gateway: its id, its key, the gateway's own few routes, and an answer to every exception."""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING

from starlette.types import Message, Receive, Scope, Send

from sixfold.core.errors import RequestError
from sixfold.core.serving.drain import Drain
from sixfold.core.serving.error_responses import error_response, internal_error_response
from sixfold.core.serving.gate import SAFE_METHODS
from sixfold.core.serving.handshake import check_origin
from sixfold.core.serving.keys import KeyRing, Principal
from sixfold.core.serving.request_facts import read_headers
from sixfold.core.serving.request_record import RequestRecord
from sixfold.core.serving.settings import ServerSettings
from sixfold.core.serving.submission_record import error_name
from sixfold.scaling.gateway.forwarding import Buffered
from sixfold.scaling.gateway.live_relay import LiveRelay
from sixfold.scaling.gateway.own_routes import OwnRoutes
from sixfold.scaling.gateway.page_relay import PageRelay
from sixfold.scaling.gateway.parts import Parts
from sixfold.scaling.gateway.proxy import ProxiedRequest

if TYPE_CHECKING:
    from sixfold.core.telemetry.tracing import Tracing

_LOG = logging.getLogger(__name__)
_MAX_LOGGED_PATH = 200
_SANE_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:\-]{0,127}")


class Front:
    """A gateway's ASGI application.

    Args:
        settings: Of the HTTP side.
        keys: Who may come in.
        drain: Told who is running.
        own: What the gateway answers itself.
        page: Shows the servers' playground.
        live: Shows their batches.
        parts: Of everything else.
        buffered: Counts bodies.
        tracing: Where traces of requests go; None for nowhere.
    """

    def __init__(
        self,
        settings: ServerSettings,
        keys: KeyRing,
        drain: Drain,
        own: OwnRoutes,
        page: PageRelay,
        live: LiveRelay,
        parts: Parts,
        buffered: Buffered,
        tracing: Tracing | None,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._drain = drain
        self._own = own
        self._page = page
        self._live = live
        self._parts = parts
        self._buffered = buffered
        self._tracing = tracing
        self._records = tracing is not None or settings.access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or passes it on."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1011, "reason": "The gateway passes no WebSockets on yet."})
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        wished = headers.get(b"x-request-id", b"")
        request_id = wished.decode() if _SANE_ID.fullmatch(wished) else f"req_{secrets.token_hex(12)}"

        record: RequestRecord | None = None
        if self._records:
            record = RequestRecord(request_id, monotonic(), trace=None, logs_access=self._settings.access_log)
        status = 499  # until an answer begins

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await (send(message) if record is None else record.send(send, message))

        try:
            if b"origin" in headers and scope["method"] not in SAFE_METHODS:
                check_origin(scope, self._settings.cors_origins)
            response = self._own.answer(scope, headers)
            if response is not None:
                await response(scope, receive, send_named)
                return
            if PageRelay.takes(scope["method"], scope["path"]):
                await self._page.answer(scope, receive, send_named, headers)
            elif LiveRelay.takes(scope["method"], scope["path"]):
                await self._watch(scope, receive, send_named, request_id, headers)
            else:
                await self._proxy(scope, receive, send_named, request_id, headers, record)
        except RequestError as error:
            if record is not None:
                record.error = error_name(error)
            await error_response(error)(scope, receive, send_named)
        except Exception:  # the border of a request: the client gets an answer and the log the reason
            _LOG.exception("request %s: a defect in the gateway", request_id, extra={"request_id": request_id})
            await internal_error_response(request_id)(scope, receive, send_named)
        finally:
            if record is not None:
                record.end(scope["method"], scope["path"][:_MAX_LOGGED_PATH], status)

    def _admit(self, headers: Mapping[bytes, bytes]) -> tuple[Principal, str]:
        """Whose key it is, and whom to be fair to."""
        authorization = headers.get(b"authorization")
        principal = self._keys.authenticate(authorization)
        if self._drain.begun:
            raise self._drain.refusal()
        if self._settings.api_keys:
            return principal, principal.acting_for(headers.get(b"x-tenant")).name
        if authorization is not None:
            # The replicas know the keys: here a key only stands for its holder.
            return principal, hashlib.blake2b(authorization, digest_size=8).hexdigest()
        return principal, principal.name

    async def _watch(
        self, scope: Scope, receive: Receive, send: Send, request_id: str, headers: Mapping[bytes, bytes]
    ) -> None:
        principal, tenant = self._admit(headers)
        await self._live.answer(scope, receive, send, headers, principal, tenant, request_id)

    async def _proxy(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        request_id: str,
        headers: Mapping[bytes, bytes],
        record: RequestRecord | None,
    ) -> None:
        if record is not None and self._tracing is not None:
            record.trace = self._tracing.begin(read_headers(scope), name="request", arrived_s=monotonic())
            receive = record.timed(receive)
        principal, tenant = self._admit(headers)
        if record is not None:
            record.tenant = tenant
        request = ProxiedRequest(
            self._parts,
            self._buffered,
            scope,
            receive,
            send,
            request_id=request_id,
            principal=principal,
            tenant=tenant,
            record=record,
        )
        self._drain.enter(request)
        try:
            await request.run()
        finally:
            self._drain.leave(request)
