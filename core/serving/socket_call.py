"""The `SocketCall` that plugins get: one WebSocket with its messages, its models, its submissions and its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping
from time import monotonic
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected

from sixfold.core.errors import RequestCancelled, RequestError
from sixfold.core.messages import Finished
from sixfold.core.serving.access import ModelAccess
from sixfold.core.serving.api import Fetched, Running, ServedModel
from sixfold.core.serving.context import Admitted, ServingContext
from sixfold.core.serving.handshake import choose_subprotocol
from sixfold.core.serving.request_facts import read_headers, read_path_params, read_query, read_timeout_s
from sixfold.core.serving.submission import final_event, first_events

BodyT = TypeVar("BodyT", bound=BaseModel)

_MAX_WAITING = 256
"""Messages that were received and not asked for; then the client has to wait, and its end is noticed later."""
_CLOSE_S = 1.0
_SERVICE_RESTART = 1012
_MAX_REASON_BYTES = 123


class WebSocketCall:
    """One WebSocket of a modality's route. Made by `SocketApp`; used by the endpoint's tasks in the event loop.

    Args:
        context: The server's parts.
        scope: The ASGI scope.
        receive: The ASGI channel from the client.
        send: The ASGI channel to the client.
        admitted: What the gate found out.

    Raises:
        InvalidRequest: A header of ours makes no sense.
        PermissionDenied: The key may not ask for this priority.
    """

    def __init__(self, context: ServingContext, scope: Scope, receive: Receive, send: Send, admitted: Admitted) -> None:
        self._context = context
        self._scope = scope
        self._receive = receive
        self._send = send
        self._admitted = admitted
        self._headers = read_headers(scope)
        priority = admitted.principal.priority_of(self._headers.get("x-priority"))
        self._timeout_s = read_timeout_s(self._headers, context.settings.request_timeout_s)
        self._access = ModelAccess(context, admitted.principal, admitted.request_id, priority, record=admitted.record)
        self._messages: deque[str | bytes] = deque()
        self._num_waiting_bytes = 0
        self._changed = asyncio.Condition()
        self._reader: asyncio.Task[None] | None = None
        self._closer: asyncio.Task[None] | None = None
        self._over = False  # no message will come or can be sent any more
        self.accepted = False

    @property
    def request_id(self) -> str:
        """The client's ``x-request-id`` or a new one."""
        return self._admitted.request_id

    @property
    def tenant(self) -> str:
        """Whose key it is."""
        return self._admitted.principal.name

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of the handshake, lower-case names."""
        return self._headers

    @property
    def path_params(self) -> Mapping[str, str]:
        """See `sixfold.core.serving.api.Call.path_params`."""
        return read_path_params(self._scope)

    def query(self, schema: type[BodyT]) -> BodyT:
        """See `sixfold.core.serving.api.Call.query`."""
        return read_query(self._scope, schema)

    async def model(self, name: str, operation: str) -> ServedModel:
        """See `sixfold.core.serving.api.Call.model`."""
        deadline_s = None if self._timeout_s is None else monotonic() + self._timeout_s
        return await self._access.model(name, operation, deadline_s=deadline_s)

    def models(self, operation: str) -> tuple[ServedModel, ...]:
        """See `sixfold.core.serving.api.Call.models`."""
        return self._access.models(operation)

    async def run(self, model: ServedModel, input: msgspec.Struct) -> Finished[Any]:
        """See `sixfold.core.serving.api.SocketCall.run`."""
        await self._accept()
        return await final_event(self._access.submit_for(model, input, self._timeout_s))

    async def start(self, model: ServedModel, input: msgspec.Struct) -> Running:
        """See `sixfold.core.serving.api.SocketCall.start`."""
        await self._accept()
        return await first_events(self._access.submit_for(model, input, self._timeout_s))

    async def fetch(self, url: str, *, max_bytes: int) -> Fetched:
        """See `sixfold.core.serving.api.Call.fetch`."""
        return await self._context.fetcher.fetch(url, max_bytes=max_bytes)

    async def receive(self) -> str | bytes | None:
        """See `sixfold.core.serving.api.SocketCall.receive`."""
        await self._accept()
        async with self._changed:
            await self._changed.wait_for(lambda: self._messages or self._over)
            if not self._messages:
                return None
            message = self._messages.popleft()
            self._num_waiting_bytes -= len(message)
            self._changed.notify_all()
            return message

    async def send(self, data: str | bytes) -> None:
        """See `sixfold.core.serving.api.SocketCall.send`."""
        await self._accept()
        if self._over:
            raise _gone()
        try:
            await self._send({"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data})
        except ClientDisconnected:
            raise _gone() from None

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """See `sixfold.core.serving.api.SocketCall.close`."""
        await self._accept()
        if self._over:
            return
        await self._finish()
        text = reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
        with contextlib.suppress(ClientDisconnected):
            await self._send({"type": "websocket.close", "code": code, "reason": text})

    def abort(self, reason: RequestError) -> None:
        """Ends everything that runs and closes the socket: the server is going down."""
        self._access.abort(reason)
        if self._closer is None:
            self._closer = asyncio.get_running_loop().create_task(self.close(_SERVICE_RESTART, reason.message))

    async def leave(self) -> None:
        """Gives everything back. Called once, when the endpoint has ended."""
        self._access.close(RequestCancelled("The socket was closed."))
        if self._closer is not None:  # it may still be sending the closing code
            await asyncio.wait((self._closer,), timeout=_CLOSE_S)
        for task in (self._reader, self._closer):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _accept(self) -> None:
        """Completes the handshake, once; until then an error of the endpoint still gets its HTTP status."""
        if self.accepted:
            return
        self.accepted = True
        message = await self._receive()
        if message["type"] != "websocket.connect":
            await self._on_left()
            return
        await self._send({"type": "websocket.accept", "subprotocol": choose_subprotocol(self._scope)})
        self._reader = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        """Takes messages as they come, as far as they are asked for in time; so it also notices that the client left."""
        max_bytes = 2 * self._context.settings.max_message_bytes
        while True:
            message = await self._receive()
            if message["type"] != "websocket.receive":
                await self._on_left()
                return
            text: str | None = message.get("text")
            data: str | bytes = text if text is not None else message["bytes"]
            async with self._changed:
                if self._over:
                    continue
                self._messages.append(data)
                self._num_waiting_bytes += len(data)
                self._changed.notify_all()
                await self._changed.wait_for(
                    lambda: self._over or (len(self._messages) < _MAX_WAITING and self._num_waiting_bytes <= max_bytes)
                )

    async def _on_left(self) -> None:
        self._access.abort(_gone())
        await self._finish()

    async def _finish(self) -> None:
        async with self._changed:
            self._over = True
            self._changed.notify_all()


def _gone() -> RequestCancelled:
    return RequestCancelled("The client went away.")
