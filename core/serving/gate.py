"""The outermost layer of the application: request ids, keys, draining, and an answer to every exception."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sixfold.core.errors import PayloadTooLarge, RequestCancelled, RequestError
from sixfold.core.serving.context import SCOPE_KEY, Admitted, ServingContext
from sixfold.core.serving.error_responses import error_response, internal_error_response
from sixfold.core.serving.handshake import check_origin, key_of_subprotocol
from sixfold.core.serving.limits import KeyLimiter
from sixfold.core.serving.playground import PREFIX
from sixfold.core.serving.request_facts import read_headers
from sixfold.core.serving.request_record import RequestRecord
from sixfold.core.serving.submission_record import error_name
from sixfold.core.serving.turns import Turns

if TYPE_CHECKING:
    from sixfold.core.telemetry.tracing import RequestTrace

logger = logging.getLogger(__name__)

_SANE_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:\-]{0,127}")
_NO_ROUTE = "none"
_TOO_MANY = 429
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
"""Change nothing; browsers keep their answers from pages of other origins."""
_BEGINNINGS = frozenset(("http.response.start", "websocket.http.response.start", "websocket.accept"))

ALWAYS_OPEN = frozenset(("/", "/health", "/ready", "/docs", "/redoc", "/openapi.json"))
"""Paths that need no key and answer while the server drains: probes, and documents without secrets."""

FIGURES = frozenset(("/load", "/metrics"))
"""Paths that answer while the server drains, and need a key only where the operator says so."""

_NOT_TRACED = ALWAYS_OPEN | FIGURES | {"/v1/models"}
"""What machines ask all the time: gateways look at the models each second."""


class Gate:
    """Pure ASGI middleware; everything that the server answers passes through it.

    Args:
        app: The rest of the application.
        context: The server's parts.
        is_plain: Whether this path is a plain LitAPI's: the gate does for it what `RouteApp` does for modalities.
    """

    def __init__(self, app: ASGIApp, *, context: ServingContext, is_plain: Callable[[str], bool]) -> None:
        self._app = app
        self._context = context
        self._is_plain = is_plain
        self._open = ALWAYS_OPEN if context.settings.protect_metrics else ALWAYS_OPEN | FIGURES
        self._answering_when_draining = ALWAYS_OPEN | FIGURES
        self._turns = Turns(monotonic)
        self._records = context.tracing is not None or context.settings.access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets one request in, or answers it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        is_socket = scope["type"] == "websocket"
        authorization: bytes | None = None
        wished_id = b""
        tenant: bytes | None = None
        from_page = False
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value
            elif name == b"x-request-id":
                wished_id = value
            elif name == b"x-tenant":
                tenant = value
            elif name == b"origin":
                from_page = True
        # The client's id, if it is harmless in logs and headers.
        sane = wished_id and _SANE_ID.fullmatch(wished_id)
        request_id = wished_id.decode() if sane else f"req_{secrets.token_hex(12)}"
        record = self._new_record(scope, request_id) if self._records else None
        if record is not None and record.trace is not None:
            receive = record.timed(receive)
        reply = _Reply(send, request_id.encode(), record)
        try:
            if from_page and (is_socket or scope["method"] not in SAFE_METHODS):
                check_origin(scope, self._context.settings.cors_origins)
            if is_socket:
                authorization = authorization or key_of_subprotocol(scope)
            self._admit(scope, request_id, authorization, tenant, record)
            reply.limiter = scope[SCOPE_KEY].principal.limiter
            if self._turns.is_flooded(scope["path"]):
                await self._turns.turn()
            if self._is_plain(scope["path"]):
                await self._run_plain(scope, receive, reply.send)
            else:
                await self._app(scope, receive, reply.send)
        except RequestError as error:
            if record is not None:
                record.error = error_name(error)
            await _answer_error(error, reply, scope, receive)
        except Exception:  # the border of a request: whatever it was, the client gets an answer and the log the reason
            extra = {"request_id": request_id, "trace_id": None if record is None else record.trace_id}
            logger.exception("request %s: a defect in the server", request_id, extra=extra)
            if reply.status:
                raise  # the status is sent; the server closes the connection
            await internal_error_response(request_id)(scope, receive, reply.send)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", _NO_ROUTE)
            if reply.status == _TOO_MANY:
                self._turns.refused(scope["path"])
            method = "WebSocket" if is_socket else scope["method"] if scope["method"] in _METHODS else "other"
            self._context.metrics.http_request(path, method, reply.status or 499)
            if record is not None:
                record.end(method, path, reply.status or 499)

    async def _run_plain(self, scope: Scope, receive: Receive, send: Send) -> None:
        running = _PlainRequest()
        limiter = scope[SCOPE_KEY].principal.limiter
        limiter.begin()
        self._context.drain.enter(running)
        try:
            await self._app(scope, bounded(receive, self._context.settings.max_body_bytes), send)
        finally:
            self._context.drain.leave(running)
            limiter.end()

    def _new_record(self, scope: Scope, request_id: str) -> RequestRecord | None:
        arrived_s, tracing = monotonic(), self._context.tracing
        trace: RequestTrace | None = None
        if tracing is not None and scope["path"] not in _NOT_TRACED:
            trace = tracing.begin(read_headers(scope), name="request", arrived_s=arrived_s)
            trace = trace if trace.sampled else None
        logs_access = self._context.settings.access_log
        return (
            RequestRecord(request_id, arrived_s, trace=trace, logs_access=logs_access) if trace or logs_access else None
        )

    def _admit(
        self,
        scope: Scope,
        request_id: str,
        authorization: bytes | None,
        tenant: bytes | None,
        record: RequestRecord | None,
    ) -> None:
        path = scope["path"]
        context = self._context
        if (context.drain.begun or context.directory.draining) and path not in self._answering_when_draining:
            raise context.drain.refusal()
        is_open = path in self._open or path.startswith(PREFIX)
        principal = context.keys.everyone if is_open else context.keys.authenticate(authorization).acting_for(tenant)
        if record is not None:
            record.tenant = principal.name
        scope[SCOPE_KEY] = Admitted(request_id=request_id, principal=principal, arrived_s=monotonic(), record=record)


class _PlainRequest:
    """A request that LitServe's own loop runs: it can be waited for, not ended."""

    def abort(self, reason: RequestError) -> None:
        """Does nothing: LitServe has no way to end a running predict."""


class _Reply:
    """Adds the request id and what is left of the key's limits to an answer; remembers its status, 0 until it began."""

    __slots__ = ("_id", "_record", "_send", "limiter", "status")

    def __init__(self, send: Send, request_id: bytes, record: RequestRecord | None) -> None:
        self._record = record
        self._send = send
        self._id = request_id
        self.limiter: KeyLimiter | None = None
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] in _BEGINNINGS:
            self.status = message.get("status", 101)
            limits = () if self.limiter is None else self.limiter.headers
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self._id), *limits]
        elif message["type"] == "websocket.close" and not self.status:
            self.status = 403  # what the server makes of it before a handshake
        if self._record is None:
            await self._send(message)
        else:
            await self._record.send(self._send, message)


async def _answer_error(error: RequestError, reply: _Reply, scope: Scope, receive: Receive) -> None:
    if reply.status:  # routes turn their own late errors into frames, so this one came from elsewhere
        raise error
    # The rest of these bodies was not read: the connection cannot carry another request.
    unread = isinstance(error, PayloadTooLarge) or error.code == "body_timeout"
    if isinstance(error, RequestCancelled):
        reply.status = 499  # nobody reads it
        return
    await error_response(error, close=unread)(scope, receive, reply.send)


def bounded(receive: Receive, max_bytes: int) -> Receive:
    """A channel that refuses bodies over ``max_bytes``, in the form that LitServe's handlers let through."""
    num_bytes = 0

    async def receive_bounded() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > max_bytes:
            raise HTTPException(413, f"The request body is larger than the {max_bytes} bytes that this server takes.")
        return message

    return receive_bounded
