"""The HTTP face of hub and agent: a handful of fixed routes, bounded bodies, one token, and metrics."""

from __future__ import annotations

import asyncio
import hmac
import signal
from collections.abc import Awaitable, Callable, Generator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import msgspec
import uvicorn
from prometheus_client import CollectorRegistry, generate_latest

from sixfold.core.errors import InvalidRequest, NotAuthenticated, NotFound, PayloadTooLarge, RequestError
from sixfold.core.serving.lifecycle import nothing_to_reload

Handler: TypeAlias = Callable[[bytes], bytes]
"""Body to JSON body; raises RequestError."""

Routes: TypeAlias = Mapping[tuple[str, str], Handler]

MessageT = TypeVar("MessageT")

_Message: TypeAlias = MutableMapping[str, Any]

_MAX_BODY_BYTES = 16 * 1024 * 1024
_OPEN = (("GET", "/healthz"),)
"""What load balancers ask without a token."""


class WebFace:
    """An ASGI application.

    Args:
        routes: By method and path.
        registry: Shown under ``/metrics``.
        token: What callers must send as a bearer token; None takes everybody.
    """

    def __init__(self, routes: Routes, registry: CollectorRegistry, token: str | None) -> None:
        self._routes = routes
        self._registry = registry
        self._token = token

    async def __call__(
        self,
        scope: _Message,
        receive: Callable[[], Awaitable[_Message]],
        send: Callable[[_Message], Awaitable[None]],
    ) -> None:
        """One request."""
        assert scope["type"] == "http", "uvicorn runs this without a lifespan and without WebSockets"
        status, kind = 200, b"application/json"
        try:
            route = (str(scope["method"]), str(scope["path"]))
            self._authenticate(route, scope["headers"])
            if route == ("GET", "/metrics"):
                body, kind = generate_latest(self._registry), b"text/plain; version=0.0.4; charset=utf-8"
            else:
                handler = self._routes.get(route)
                if handler is None:
                    known = ", ".join(f"{method} {path}" for method, path in sorted(self._routes))
                    raise NotFound(f"There is no {route[0]} {route[1]}. Known: {known}, GET /metrics.")
                body = handler(await _read(receive))
        except RequestError as error:
            status = error.status
            body = msgspec.json.encode({"error": {"message": error.message, "type": error.type, "code": error.code}})
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _authenticate(self, route: tuple[str, str], headers: list[tuple[bytes, bytes]]) -> None:
        if self._token is None or route in _OPEN:
            return
        given = dict(headers).get(b"authorization", b"")
        if not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
            raise NotAuthenticated("Send the token of the configuration: 'Authorization: Bearer ...'.")


async def _read(receive: Callable[[], Awaitable[_Message]]) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _MAX_BODY_BYTES:
            raise PayloadTooLarge(f"The body is larger than {_MAX_BODY_BYTES} bytes.")
        if not message.get("more_body"):
            return bytes(body)


def decode(body: bytes, kind: type[MessageT]) -> MessageT:
    """A message of the given type.

    Raises:
        InvalidRequest: The body is not one.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as error:  # what decoders raise
        raise InvalidRequest(f"The body is not a {kind.__name__}: {error}.", param="body") from None


async def serve_web(face: WebFace, host: str, port: int, on_ready: Callable[[], None]) -> None:
    """Listens until SIGTERM or SIGINT; returns when the last answer is sent."""
    config = uvicorn.Config(
        face,
        host=host,
        port=port,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    server = _Server(config, on_ready)
    await server.serve()


class _Server(uvicorn.Server):
    """Tells when it listens, and returns at SIGTERM: uvicorn's own raises the signal again, and nothing could be given back."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, nothing_to_reload)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        self.should_exit = True

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()
