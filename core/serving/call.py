"""The `Call` that plugins get: one HTTP request with its body, its model, its submissions and its end.

Three request headers are ours: ``x-request-id`` (comes back if it is sane), ``x-request-timeout-s`` (a deadline, bounded by
``server.request_timeout_s``) and ``x-priority`` (batch, standard or interactive, bounded by the key's own class).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope

from sixfold.core.errors import DeadlineExceeded, NotFound, RequestCancelled, RequestError
from sixfold.core.files import FileStore
from sixfold.core.messages import Finished, Priority
from sixfold.core.serving.access import WORKER_GRACE_S, ModelAccess
from sixfold.core.serving.api import Fetched, Running, ServedModel
from sixfold.core.serving.body import check_content_type, parse_json, read_body
from sixfold.core.serving.byte_stream import BytesResponse
from sixfold.core.serving.context import Admitted, ServingContext
from sixfold.core.serving.directory import OptionsChange
from sixfold.core.serving.form_fields import parse_fields
from sixfold.core.serving.form_reader import FormLimits, is_form, read_form
from sixfold.core.serving.multipart import discard
from sixfold.core.serving.request_facts import read_headers, read_path_params, read_query, read_timeout_s
from sixfold.core.serving.sse import SseResponse
from sixfold.core.serving.submission import Submission, final_event, first_events

BodyT = TypeVar("BodyT", bound=BaseModel)

logger = logging.getLogger(__name__)

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_WORKER_GRACE_S = WORKER_GRACE_S
_READER_GRACE_S = 5.0
"""A client that reads nothing for so long after its deadline is cut off."""


class HttpCall:
    """One HTTP request of a modality's route. Made by `RouteApp`, used by one task, closed when the response is sent.

    Args:
        context: The server's parts.
        scope: The ASGI scope.
        receive: The ASGI channel.
        admitted: What the gate found out.

    Raises:
        InvalidRequest: A header of ours makes no sense.
        PermissionDenied: The key may not ask for this priority.
    """

    __slots__ = (
        "_access",
        "_admitted",
        "_context",
        "_deadline_s",
        "_has_body",
        "_headers",
        "_receive",
        "_scope",
        "_task",
        "_timer",
        "_watch",
    )

    def __init__(self, context: ServingContext, scope: Scope, receive: Receive, admitted: Admitted) -> None:
        self._context = context
        self._scope = scope
        self._receive = receive
        self._admitted = admitted
        self._headers = read_headers(scope)
        priority = admitted.principal.priority_of(self._headers.get("x-priority"))
        timeout_s = read_timeout_s(self._headers, context.settings.request_timeout_s)
        self._deadline_s = None if timeout_s is None else admitted.arrived_s + timeout_s
        self._access = ModelAccess(context, admitted.principal, admitted.request_id, priority, record=admitted.record)
        self._has_body = False  # it was read: what the channel says next is that the client left
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def request_id(self) -> str:
        """The client's ``x-request-id`` or a new one."""
        return self._admitted.request_id

    @property
    def headers(self) -> Mapping[str, str]:
        """Request headers, lower-case names."""
        return self._headers

    @property
    def tenant(self) -> str:
        """Whose key it is."""
        return self._admitted.principal.name

    @property
    def path_params(self) -> Mapping[str, str]:
        """See `sixfold.core.serving.api.Call.path_params`."""
        return read_path_params(self._scope)

    @property
    def priority(self) -> Priority:
        """See `sixfold.core.serving.api.Call.priority`."""
        return self._access.priority

    @property
    def in_batch(self) -> bool:
        """See `sixfold.core.serving.api.Call.in_batch`."""
        return False

    @property
    def is_form(self) -> bool:
        """Whether the body is said to be a form."""
        return is_form(self._headers)

    def query(self, schema: type[BodyT]) -> BodyT:
        """See `sixfold.core.serving.api.Call.query`."""
        return read_query(self._scope, schema)

    async def form(self, schema: type[BodyT], store: FileStore | None = None) -> BodyT:
        """See `sixfold.core.serving.api.Call.form`."""
        settings = self._context.settings
        limits = FormLimits(
            max_bytes=settings.max_body_bytes,
            max_upload_bytes=settings.max_upload_bytes,
            timeout_s=settings.body_timeout_s,
        )
        fields = await read_form(self._receive, self._headers, limits, store)
        self._has_body = True
        try:
            return parse_fields(fields, schema)
        except RequestError:
            if store is not None:
                await asyncio.to_thread(discard, fields, store)
            raise

    async def json(self, schema: type[BodyT]) -> BodyT:
        """See `sixfold.core.serving.api.Call.json`."""
        check_content_type(self._headers)
        settings = self._context.settings
        body = await read_body(
            self._receive, self._headers, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s
        )
        self._has_body = True
        if self._admitted.record is not None:
            self._admitted.record.content(body)
        return parse_json(body, schema)

    async def model(self, name: str, operation: str) -> ServedModel:
        """See `sixfold.core.serving.api.Call.model`."""
        return await self._access.model(name, operation, deadline_s=self._deadline_s, on_wait=self._on_wait)

    def models(self, operation: str) -> tuple[ServedModel, ...]:
        """See `sixfold.core.serving.api.Call.models`."""
        return self._access.models(operation)

    async def adjust(self, model: ServedModel, change: OptionsChange) -> None:
        """See `sixfold.core.serving.api.Call.adjust`."""
        await self._access.adjust(model, change)

    async def fetch(self, url: str, *, max_bytes: int) -> Fetched:
        """See `sixfold.core.serving.api.Call.fetch`."""
        return await self._context.fetcher.fetch(url, max_bytes=max_bytes)

    async def run(self, model: ServedModel, input: msgspec.Struct) -> Finished[Any]:
        """See `sixfold.core.serving.api.Call.run`."""
        return await final_event(self._submit(model, input))

    async def start(self, model: ServedModel, input: msgspec.Struct) -> Running:
        """See `sixfold.core.serving.api.Call.start`."""
        return await first_events(self._submit(model, input))

    def respond(
        self,
        body: bytes | msgspec.Struct | Mapping[str, object],
        *,
        media_type: str = "application/json",
        status: int = 200,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> Response:
        """See `sixfold.core.serving.api.Call.respond`."""
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return Response(content, status, headers, media_type)

    def respond_file(self, path: Path, *, media_type: str, filename: str | None = None) -> Response:
        """See `sixfold.core.serving.api.Call.respond_file`."""
        if not path.is_file():
            raise NotFound("The file is not there any more.")
        return FileResponse(path, media_type=media_type, filename=filename)

    def stream_bytes(
        self, chunks: AsyncIterator[bytes], *, media_type: str, headers: Mapping[str, str] = _NO_HEADERS
    ) -> Response:
        """See `sixfold.core.serving.api.Call.stream_bytes`."""
        return BytesResponse(chunks, media_type=media_type, headers=headers, report=self._report_cut)

    def stream_sse(self, chunks: AsyncIterator[bytes]) -> Response:
        """See `sixfold.core.serving.api.Call.stream_sse`."""
        return SseResponse(chunks, explain=self._explain, keep_alive_s=self._context.settings.sse_keep_alive_s)

    def abort(self, reason: RequestError) -> None:
        """Ends everything that this call runs and would run; its client is told ``reason``."""
        self._access.abort(reason)

    def close(self) -> None:
        """Gives everything back: cancels what still runs, the disconnect watch and the timer. Called once, at the end."""
        if self._watch is not None:
            self._watch.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._access.close(RequestCancelled("The response was closed."))

    def _on_wait(self) -> None:
        if self._has_body and self._watch is None:
            self._start_watching()

    def _submit(self, model: ServedModel, input: msgspec.Struct) -> Submission:
        arrived_s = self._admitted.arrived_s
        submission = self._access.submit(model, input, arrived_s=arrived_s, deadline_s=self._deadline_s)
        if self._watch is None:
            self._start_watching()
        return submission

    def _start_watching(self) -> None:
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._watch = loop.create_task(self._watch_for_disconnect())
        if self._deadline_s is not None:
            self._timer = loop.call_later(self._deadline_s - monotonic() + _WORKER_GRACE_S, self._on_overdue)

    async def _watch_for_disconnect(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.abort(RequestCancelled("The client went away."))
                return

    def _on_overdue(self) -> None:
        self.abort(DeadlineExceeded("The request's deadline passed before it was done."))
        if self._task is not None:
            self._timer = asyncio.get_running_loop().call_later(_READER_GRACE_S, self._task.cancel)

    def _report_cut(self, failure: Exception) -> None:
        if not isinstance(failure, RequestCancelled):
            reason = self._explain(failure)
            logger.warning("request %s: its byte stream was cut: %s", self.request_id, reason.message)

    def _explain(self, failure: Exception) -> RequestError:
        if isinstance(failure, RequestError):
            return failure
        logger.error("request %s: a defect ended its stream", self.request_id, exc_info=failure)
        return RequestError(
            f"The server made a mistake. It was logged; quote the request id {self.request_id} to the operator.",
            code="internal_error",
        )
