"""Calls of a modality's routes from inside the server, for work that was handed in earlier: a line of a batch."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar, cast

import msgspec
from pydantic import BaseModel
from starlette.types import Message, Scope

from sixfold.core.errors import InvalidRequest, RequestError, StepFailed
from sixfold.core.files import FileStore
from sixfold.core.serving.api import Route
from sixfold.core.serving.body import parse_json
from sixfold.core.serving.call import HttpCall
from sixfold.core.serving.context import Admitted, ServingContext
from sixfold.core.serving.error_responses import error_json
from sixfold.core.serving.form_fields import parse_fields, takes_many, takes_upload
from sixfold.core.serving.keys import Principal
from sixfold.core.serving.limits import KeyLimiter
from sixfold.core.serving.multipart import MAX_PARTS, FormItem
from sixfold.core.serving.settings import KeyLimits
from sixfold.core.serving.upload import Upload

logger = logging.getLogger(__name__)

BodyT = TypeVar("BodyT", bound=BaseModel)
OpenFile = Callable[[str, int], Awaitable[Upload]]
"""Gets the file that a body names by its id, read only if it has at most so many bytes; raises InvalidRequest if there is none or
it has more."""

_MAX_ANSWER_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerAnswer:
    """A whole answer.

    Attributes:
        status: As HTTP would have it.
        content_type: Of the body.
        body: Of an error, too.
        error: Why it is no success.
    """

    status: int
    content_type: str
    body: bytes
    error: RequestError | None = None


class InnerCalls:
    """The routes that may be called from inside. Used in the event loop.

    Args:
        context: The server's parts.
    """

    def __init__(self, context: ServingContext) -> None:
        self._context = context
        self._routes: dict[str, Route] = {}

    def offer(self, route: Route) -> None:
        """Adds a route. Called before the server listens."""
        self._routes[route.path] = route

    @property
    def paths(self) -> tuple[str, ...]:
        """What may be called."""
        return tuple(sorted(self._routes))

    @property
    def draining(self) -> bool:
        """Whether nothing new may begin."""
        return self._context.drain.begun or self._context.directory.draining

    def registry_name(self, model_name: str) -> str:
        """The registry's name of the model of this name, alias or variant; the name itself if there is none."""
        hosted = self._context.directory.find(model_name)
        return model_name if hosted is None else hosted.name

    def num_urgent(self, model_name: str) -> int:
        """Requests above the class batch that run at the model of this name, alias or variant."""
        hosted = self._context.directory.find(model_name)
        return 0 if hosted is None else self._context.urgent.num(hosted.name)

    async def perform(
        self, path: str, body: bytes, *, tenant: str, request_id: str, open_file: OpenFile
    ) -> InnerAnswer:
        """Does what a client's POST would, in the class batch; what would be an HTTP error is an answer with one.

        It counts for none of the key's own limits, and the drain does not wait for it: cancel it then.

        Args:
            path: One of `paths`.
            body: JSON. Where the route takes a form, its fields; files are ``data:`` URLs or names for ``open_file``.
            tenant: `Caller.tenant` of the client for which it is done; its rights and weight count.
            request_id: For the logs.
            open_file: Gets files by name.
        """
        sink = _Sink()
        try:
            route, principal = self._routes[path], self._context.keys.holder(tenant)
            principal = dataclasses.replace(principal, limiter=KeyLimiter(tenant, KeyLimits(), monotonic))
            call = _InnerCall(self._context, principal, route, body, request_id, open_file)
            try:
                response = await route.endpoint(call)
                await response(call.scope, call.never, sink.send)
            finally:
                call.close()
        except RequestError as error:
            return _refusal(error)
        except Exception:  # the border of a request: a defect must end this call and nothing else
            logger.exception("request %s: a defect in the server", request_id)
            message = f"The server made a mistake. It was logged; quote the request id {request_id} to the operator."
            return _refusal(RequestError(message, code="internal_error"))
        return sink.answer()


class _InnerCall(HttpCall):
    """A call whose body is here and whose client cannot leave."""

    __slots__ = ("_body", "_open_file", "_route", "scope")

    def __init__(
        self,
        context: ServingContext,
        principal: Principal,
        route: Route,
        body: bytes,
        request_id: str,
        open_file: OpenFile,
    ) -> None:
        self.scope: Scope = {
            "type": "http",
            "method": route.method,
            "path": route.path,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"x-priority", b"batch")],
            "path_params": {},
        }
        admitted = Admitted(request_id=request_id, principal=principal, arrived_s=monotonic())
        super().__init__(context, self.scope, self.never, admitted)
        self._route = route
        self._body = body
        self._open_file = open_file

    async def never(self) -> Message:
        """What a channel says whose client stays."""
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nobody sets this future")

    @property
    def in_batch(self) -> bool:
        return True

    @property
    def is_form(self) -> bool:
        return self._route.body is None

    async def json(self, schema: type[BodyT]) -> BodyT:
        return parse_json(self._body, schema)

    async def form(self, schema: type[BodyT], store: FileStore | None = None) -> BodyT:
        assert store is None, "routes that store files are not for batches"
        fields: dict[str, Any] = msgspec.json.decode(self._body)
        # A line of a few bytes may name a large file often: it is refused before any is read, and all together are one upload.
        num_left = self._context.settings.max_upload_bytes
        items: list[FormItem] = []
        for name, value in _flat(fields, schema):
            plain = name.removesuffix("[]")
            if takes_upload(schema, plain):
                upload = await self._upload(plain, value, max_bytes=num_left)
                num_left -= len(upload.data)
                items.append(FormItem(name, upload))
            else:
                items.append(FormItem(name, value if isinstance(value, str) else msgspec.json.encode(value).decode()))
        return parse_fields(items, schema)

    async def _upload(self, name: str, value: Any, *, max_bytes: int) -> Upload:
        if not isinstance(value, str):
            raise InvalidRequest(
                f"Invalid parameter {name!r}: in a batch it is the id of an uploaded file or a data: URL.", param=name
            )
        try:
            if not value.startswith("data:"):
                return await self._open_file(value, max_bytes)
            fetched = await self.fetch(value, max_bytes=max_bytes)
        except InvalidRequest as failure:
            raise InvalidRequest(failure.message, param=name, code=failure.code) from None
        return Upload("", fetched.content_type, fetched.data)


def _flat(fields: Mapping[str, Any], schema: type[BaseModel]) -> list[tuple[str, Any]]:
    """A JSON object's values as a form would bring them: those of a list one by one.

    Raises:
        InvalidRequest: They are more than a form may have, or several files where the schema takes one.
    """
    found: list[tuple[str, Any]] = []
    for name, value in fields.items():
        if not isinstance(value, list):
            found.append((name, value))
            continue
        each = cast(list[object], value)
        if len(each) > 1 and takes_upload(schema, name) and not takes_many(schema, name):
            raise InvalidRequest(f"Invalid parameter {name!r}: it takes one file, not {len(each)}.", param=name)
        found.extend((f"{name}[]", one) for one in each)
    found = [(name, value) for name, value in found if value is not None]
    if len(found) > MAX_PARTS:
        raise InvalidRequest(f"The body has more than {MAX_PARTS} values. Send fewer.")
    return found


class _Sink:
    """What a response sends, put together."""

    def __init__(self) -> None:
        self._status = 0
        self._headers: Mapping[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self._num_bytes = 0
        self._complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = dict(message["headers"])
            return
        part = message.get("body", b"")
        self._num_bytes += len(part)
        if self._num_bytes > _MAX_ANSWER_BYTES:
            raise StepFailed(f"The answer is longer than the {_MAX_ANSWER_BYTES} bytes that a batch keeps of one line.")
        self._parts.append(part)
        self._complete = not message.get("more_body", False)

    def answer(self) -> InnerAnswer:
        content_type = self._headers.get(b"content-type", b"").decode("latin-1")
        if not self._complete:
            return _refusal(RequestError("The model failed in the midst of its answer.", code="answer_cut"))
        if content_type.startswith("text/event-stream"):
            return _refusal(InvalidRequest("Batches hold whole answers. Send no 'stream'.", param="stream"))
        return InnerAnswer(status=self._status, content_type=content_type, body=b"".join(self._parts))


def _refusal(error: RequestError) -> InnerAnswer:
    return InnerAnswer(status=error.status, content_type="application/json", body=error_json(error), error=error)
