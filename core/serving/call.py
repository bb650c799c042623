"""The `Call` that plugins get: one HTTP request with its body, its model, its submissions and its end.

Three request headers are ours: ``x-request-id`` (comes back if it is sane), ``x-request-timeout-s`` (a deadline, bounded by
``server.request_timeout_s``) and ``x-priority`` (batch, standard or interactive, bounded by the key's own class).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Mapping
from functools import partial
from time import monotonic
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope

from sixfold.core.errors import DeadlineExceeded, InvalidRequest, NotReady, RequestCancelled, RequestError
from sixfold.core.messages import Finished, Request
from sixfold.core.serving.api import Running, ServedModel
from sixfold.core.serving.body import check_content_type, parse_json, read_body
from sixfold.core.serving.context import Admitted, ServingContext
from sixfold.core.serving.model_lookup import NamedModel, find_model
from sixfold.core.serving.sse import SseResponse
from sixfold.core.serving.submission import Submission, final_event, first_events

BodyT = TypeVar("BodyT", bound=BaseModel)

logger = logging.getLogger(__name__)

_WORKER_GRACE_S = 2.0
"""The worker enforces deadlines; the HTTP face does it itself when the worker is this late."""
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
        "_aborted",
        "_admitted",
        "_context",
        "_deadline_s",
        "_headers",
        "_priority",
        "_receive",
        "_scope",
        "_submissions",
        "_task",
        "_timer",
        "_watch",
    )

    def __init__(self, context: ServingContext, scope: Scope, receive: Receive, admitted: Admitted) -> None:
        self._context = context
        self._scope = scope
        self._receive = receive
        self._admitted = admitted
        self._headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._priority = admitted.principal.priority_of(self._headers.get("x-priority"))
        self._deadline_s = self._read_deadline()
        self._submissions: list[Submission] = []
        self._aborted: RequestError | None = None
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

    async def json(self, schema: type[BodyT]) -> BodyT:
        """See `sixfold.core.serving.api.Call.json`."""
        check_content_type(self._headers)
        settings = self._context.settings
        body = await read_body(
            self._receive, self._headers, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s
        )
        return parse_json(body, schema)

    def model(self, name: str, operation: str) -> ServedModel:
        """See `sixfold.core.serving.api.Call.model`."""
        directory = self._context.directory
        try:
            return find_model(directory, self._admitted.principal, name, operation)
        except NotReady as rejection:
            hosted = directory.find(name)
            assert hosted is not None, "only a model that exists can be not ready"
            self._context.metrics.model(hosted.name).rejected(rejection)
            raise

    async def run(self, model: ServedModel, input: msgspec.Struct) -> Finished[Any]:
        """See `sixfold.core.serving.api.Call.run`."""
        return await final_event(self._submit(model, input))

    async def start(self, model: ServedModel, input: msgspec.Struct) -> Running:
        """See `sixfold.core.serving.api.Call.start`."""
        return await first_events(self._submit(model, input))

    def respond(
        self, body: bytes | msgspec.Struct | Mapping[str, object], *, media_type: str = "application/json"
    ) -> Response:
        """See `sixfold.core.serving.api.Call.respond`."""
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return Response(content, media_type=media_type)

    def stream_sse(self, chunks: AsyncIterator[bytes]) -> Response:
        """See `sixfold.core.serving.api.Call.stream_sse`."""
        return SseResponse(chunks, explain=self._explain, keep_alive_s=self._context.settings.sse_keep_alive_s)

    def abort(self, reason: RequestError) -> None:
        """Ends everything that this call runs and would run; its client is told ``reason``."""
        self._aborted = reason
        for submission in self._submissions:
            submission.cancel(reason)

    def close(self) -> None:
        """Gives everything back: cancels what still runs, the disconnect watch and the timer. Called once, at the end."""
        if self._watch is not None:
            self._watch.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self.abort(RequestCancelled("The response was closed."))

    def _submit(self, model: ServedModel, input: msgspec.Struct) -> Submission:
        assert isinstance(model, NamedModel), "models come from Call.model"
        if self._aborted is not None:
            raise self._aborted
        admitted, context, hosted = self._admitted, self._context, model.hosted
        metrics = context.metrics.model(hosted.name)
        request = Request(
            # Replicas tell requests apart by it; clients may send one id twice, and one call may submit several.
            request_id=f"{admitted.request_id}/{next(context.request_numbers)}",
            input=input,
            tenant=admitted.principal.name,
            weight=admitted.principal.weight,
            priority=self._priority,
            arrived_s=admitted.arrived_s,
            deadline_s=self._deadline_s,
        )
        try:
            replica, stream = context.chooser.submit(hosted.replicas, request)
        except RequestError as rejection:
            metrics.rejected(rejection)
            raise
        submission = Submission(stream, metrics, admitted.arrived_s, partial(context.chooser.done, replica))
        self._submissions.append(submission)
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

    def _read_deadline(self) -> float | None:
        timeout_s = self._context.settings.request_timeout_s
        header = self._headers.get("x-request-timeout-s")
        if header is not None:
            try:
                wanted_s = float(header)
            except ValueError:
                wanted_s = math.nan
            if not (math.isfinite(wanted_s) and wanted_s > 0):
                raise InvalidRequest(f"Header x-request-timeout-s: {header[:40]!r} is no positive number of seconds.")
            timeout_s = wanted_s if timeout_s is None else min(wanted_s, timeout_s)
        return None if timeout_s is None else self._admitted.arrived_s + timeout_s

    def _explain(self, failure: Exception) -> RequestError:
        if isinstance(failure, RequestError):
            return failure
        logger.error("request %s: a defect ended its stream", self.request_id, exc_info=failure)
        return RequestError(
            f"The server made a mistake. It was logged; quote the request id {self.request_id} to the operator.",
            code="internal_error",
        )
