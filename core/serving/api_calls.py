"""What a plugin gets from each of its clients: one `Call` per HTTP request, one `SocketCall` per WebSocket, and the models and
answers that both hand out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
from pydantic import BaseModel
from starlette.responses import Response

from sixfold.core.batching.model import ModelInfo
from sixfold.core.family import Family
from sixfold.core.files import FileStore
from sixfold.core.messages import Event, Finished, Priority
from sixfold.core.serving.directory import OptionsChange

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

    @property
    def variant(self) -> str | None:
        """The name, if it is one that the family offers beside the model's own (`Family.variants`), else None."""
        ...


class Running(Protocol):
    """The events of a submitted request whose first event has arrived without an error."""

    def __aiter__(self) -> AsyncIterator[Sequence[Event]]:
        """Yields events in bulk, as steps deliver them; raises the RequestError of a Failed event."""
        ...


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a URL named.

    Attributes:
        data: The bytes.
        content_type: As the host or the data: URL said; may have parameters.
    """

    data: bytes
    content_type: str


class Caller(Protocol):
    """What HTTP calls and sockets have in common: who asks, with which words, and the models for it."""

    @property
    def request_id(self) -> str:
        """The client's ``x-request-id`` or a new one."""
        ...

    @property
    def tenant(self) -> str:
        """Whose key it is: the owner of what the call stores. ``anonymous`` on a server without keys."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Request headers, lower-case names."""
        ...

    @property
    def path_params(self) -> Mapping[str, str]:
        """What stands in the place of each ``{name}`` of the route's path."""
        ...

    def query(self, schema: type[BodyT]) -> BodyT:
        """Validates the query string as `Call.form` does a form.

        Raises:
            InvalidRequest: A parameter is missing, unknown or of a wrong type; ``param`` names it.
        """
        ...

    async def model(self, name: str, operation: str) -> ServedModel:
        """The model of this name, alias or variant; loaded first if need be, and kept in memory until the call has ended.

        Read the body before: while a model loads, a call whose body was read notices that its client leaves.

        Raises:
            ModelNotFound: No such model, or it does not offer the operation (the message says which models do).
            NotReady: It starts, is draining, could not be loaded, or did not load before the call's deadline.
            PermissionDenied: The key may not use it.
        """
        ...

    def models(self, operation: str) -> tuple[ServedModel, ...]:
        """All models that offer the operation and may be used with this key, in the configuration's order.

        One may be out of memory, or leave it: give its name to `model` before anything is submitted. Those that were never
        loaded are not among them.
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

        The request is cancelled when the response or socket is closed or the client disconnects.

        Raises:
            RequestError: Whatever came instead of a first event.
        """
        ...

    async def fetch(self, url: str, *, max_bytes: int) -> Fetched:
        """Gets what a URL names: ``data:`` always, ``http(s):`` from hosts that ``server.fetch_urls`` allows.

        Private, loopback and link-local addresses are never connected to, also not by a redirect.

        Raises:
            InvalidRequest: It is not allowed, cannot be had, or is larger than ``max_bytes``. ``param`` is not set.
        """
        ...


class Call(Caller, Protocol):
    """One HTTP request, authenticated, with its request id, deadline and disconnect watch."""

    @property
    def priority(self) -> Priority:
        """The class of what it submits; for work that it leaves to `Services.background`."""
        ...

    @property
    def in_batch(self) -> bool:
        """Whether it is a line of a batch: nobody asks again, so the answer must be the last word."""
        ...

    async def json(self, schema: type[BodyT]) -> BodyT:
        """Reads and validates a JSON body.

        Raises:
            InvalidRequest: Malformed JSON, a wrong type or an unknown field; ``param`` names it.
            PayloadTooLarge: The body exceeds the server's limit.
        """
        ...

    @property
    def is_form(self) -> bool:
        """Whether the body is said to be a form: call `form`; otherwise `json`."""
        ...

    async def form(self, schema: type[BodyT], store: FileStore | None = None) -> BodyT:
        """Reads and validates a multipart/form-data or urlencoded body.

        Fields of the type `Upload`, or lists of it, take files. Lists are ``name`` repeated, ``name[]`` or ``name[0]``;
        objects are ``name[key]`` or JSON text. Text becomes numbers and booleans where the schema has these.

        Args:
            schema: Of the fields.
            store: Where files go as they come, for fields of the type `StoredUpload`; where this raises, none is left there.

        Raises:
            InvalidRequest: Malformed, a field is missing, unknown or of a wrong type; ``param`` names it.
            PayloadTooLarge: The body or one field exceeds the server's limit.
            NotReady: The store is full.
        """
        ...

    async def adjust(self, model: ServedModel, change: OptionsChange) -> None:
        """Changes a model's options while it serves; its family must be able to (`Family.adjusts`).

        Args:
            model: From `model`; the key must be allowed to change models and to use this one by its own name.
            change: Makes new options of those in force.

        Raises:
            PermissionDenied: The key may change no model, or use no more than a variant or an alias of this one.
            InvalidRequest: The model can't take them over: all is as before.
            RequestError: What ``change`` raised.
        """
        ...

    def respond(
        self,
        body: bytes | msgspec.Struct | Mapping[str, object],
        *,
        media_type: str = ...,
        status: int = ...,
        headers: Mapping[str, str] = ...,
    ) -> Response:
        """A whole response, 200 unless told; Structs and mappings become JSON (``application/json`` by default)."""
        ...

    def respond_file(self, path: Path, *, media_type: str, filename: str | None = None) -> Response:
        """A file of this machine as the body, with range requests; ``filename`` makes browsers save it.

        Raises:
            NotFound: There is no such file.
        """
        ...

    def stream_sse(self, chunks: AsyncIterator[bytes]) -> Response:
        """A ``text/event-stream`` response of ready-made SSE frames (see `sixfold.core.serving.sse`).

        An exception in ``chunks`` becomes an error frame and ``data: [DONE]``, never a broken socket.
        """
        ...

    def stream_bytes(
        self, chunks: AsyncIterator[bytes], *, media_type: str, headers: Mapping[str, str] = ...
    ) -> Response:
        """A chunked response of raw bytes, sent as they come.

        An exception before the first chunk gets its own status; a later one is logged and cuts the connection, so that
        the client does not take a part for the whole.
        """
        ...


class SocketCall(Caller, Protocol):
    """One WebSocket, authenticated. Each submission has the server's ``request_timeout_s`` of its own.

    The handshake is completed by the first `receive`, `send`, `run` or `start`: a RequestError before that gets its HTTP
    status, a later one closes the socket with 1008 (the client's fault), 1013 (try again) or 1011. Returning from the
    endpoint closes it with 1000, the end of the server's drain with 1012.
    """

    async def receive(self) -> str | bytes | None:
        """The next message; None when there will be none: the client left or the socket was closed.

        Messages that are not asked for make the client wait after a while.
        """
        ...

    async def send(self, data: str | bytes) -> None:
        """Sends a text or a binary message; waits while the client does not read.

        Raises:
            RequestCancelled: The client left; let it end the endpoint.
        """
        ...

    async def close(self, code: int = ..., reason: str = ...) -> None:
        """Closes the socket: 1000 and no reason unless told. Harmless when it is closed."""
        ...
