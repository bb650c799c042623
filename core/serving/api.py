"""What a plugin needs to give its modality an HTTP face: a LitAPI with routes, and one `Call` per HTTP request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import litserve as ls
import msgspec
from pydantic import BaseModel
from starlette.responses import Response

from sixfold.core.batching.model import ModelInfo
from sixfold.core.family import Family
from sixfold.core.messages import Event, Finished

BodyT = TypeVar("BodyT", bound=BaseModel)


class ServedModel(Protocol):
    """A model of the registry, as API layers see it."""

    @property
    def name(self) -> str:
        """The name or alias that the client used; what ``model`` in an answer repeats."""
        ...

    @property
    def family(self) -> Family:
        """The family that serves it."""
        ...

    @property
    def info(self) -> ModelInfo:
        """What the loaded model tells about itself."""
        ...


class Running(Protocol):
    """The events of a submitted request whose first event has arrived without an error."""

    def __aiter__(self) -> AsyncIterator[Sequence[Event]]:
        """Yields events in bulk, as steps deliver them; raises the RequestError of a Failed event."""
        ...


class Call(Protocol):
    """One HTTP request, authenticated, with its request id, deadline and disconnect watch."""

    @property
    def request_id(self) -> str:
        """The client's ``x-request-id`` or a new one."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Request headers, lower-case names."""
        ...

    async def json(self, schema: type[BodyT]) -> BodyT:
        """Reads and validates the body.

        Raises:
            InvalidRequest: Malformed JSON, a wrong type or an unknown field; ``param`` names it.
            PayloadTooLarge: The body exceeds the server's limit.
        """
        ...

    def model(self, name: str, operation: str) -> ServedModel:
        """The model of this name or alias.

        Raises:
            ModelNotFound: No such model, or it does not offer the operation (the message says which models do).
            NotReady: It is loading or draining.
            PermissionDenied: The key may not use it.
        """
        ...

    async def run(self, model: ServedModel, input: msgspec.Struct) -> Finished[Any]:
        """Submits and waits for the end; increments are dropped. A client's disconnect cancels the request.

        Raises:
            RequestError: Whatever the request ended with.
        """
        ...

    async def start(self, model: ServedModel, input: msgspec.Struct) -> Running:
        """Submits and waits for the first event, so that early errors still get their HTTP status.

        The request is cancelled when the response is closed or the client disconnects.

        Raises:
            RequestError: Whatever came instead of a first event.
        """
        ...

    def respond(self, body: bytes | msgspec.Struct | Mapping[str, object], *, media_type: str = ...) -> Response:
        """A 200 response; Structs and mappings become JSON (``application/json`` by default)."""
        ...

    def stream_sse(self, chunks: AsyncIterator[bytes]) -> Response:
        """A ``text/event-stream`` response of ready-made SSE frames (see `sixfold.core.serving.sse`).

        An exception in ``chunks`` becomes an error frame and ``data: [DONE]``, never a broken socket.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One HTTP route of a modality.

    Attributes:
        path: Starlette path, e.g. ``"/v1/embeddings"``.
        endpoint: Called once per request.
        method: HTTP method.
        body: The pydantic model of a JSON body, for the OpenAPI document.
    """

    path: str
    endpoint: Callable[[Call], Awaitable[Response]]
    method: str = "POST"
    body: type[BaseModel] | None = None


class ModalityAPI(ls.LitAPI):  # type: ignore[misc]  # litserve ships no types
    """Base of the one LitAPI that each modality has; a subclass lists its routes.

    The serving process makes one instance, without arguments. Nothing here may import a model library.
    """

    modality: str = ""

    def routes(self) -> Sequence[Route]:
        """The modality's routes. Called once, before the server listens."""
        raise NotImplementedError
