"""Reads JSON bodies within limits and turns every way in which they can be wrong into a 400 that names the parameter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TypeVar, cast

import msgspec
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.types import Receive

from sixfold.core.errors import InvalidRequest, PayloadTooLarge, RequestCancelled
from sixfold.core.serving.schema_names import field_names_at
from sixfold.core.validation import nearest

BodyT = TypeVar("BodyT", bound=BaseModel)

_LINGER_BYTES = 16 * 1024 * 1024
_LINGER_S = 2.0
_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}


PACE_BYTES = 256 * 1024
"""What an upload must bring a second, on average, after its first ``timeout_s``."""


async def read_body(receive: Receive, headers: Mapping[str, str], *, max_bytes: int, timeout_s: float) -> bytes:
    """Reads a request's body.

    Raises:
        PayloadTooLarge: It says that it is, or turns out to be, longer than ``max_bytes``.
        InvalidRequest: It did not arrive within ``timeout_s``.
        RequestCancelled: The client went away.
    """
    stream = BodyStream(receive, headers, max_bytes=max_bytes, timeout_s=timeout_s, pace_bytes=None)
    parts = [part async for part in stream]
    return parts[0] if len(parts) == 1 else b"".join(parts)


class BodyStream:
    """A request's body in the pieces in which it arrives; read once.

    Args:
        receive: The ASGI channel.
        headers: Of the request.
        max_bytes: Largest body.
        timeout_s: By when it must be there.
        pace_bytes: Each so many bytes that arrived give it one second more; None for none.
    """

    def __init__(
        self,
        receive: Receive,
        headers: Mapping[str, str],
        *,
        max_bytes: int,
        timeout_s: float,
        pace_bytes: int | None = PACE_BYTES,
    ) -> None:
        self._receive = receive
        self._headers = headers
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._pace_bytes = pace_bytes
        self._more = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yields the pieces.

        Raises:
            PayloadTooLarge: The body says that it is, or turns out to be, too long.
            InvalidRequest: It did not arrive in time.
            RequestCancelled: The client went away.
        """
        declared = self._headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            if "expect" not in self._headers:  # a client that waits for "100 Continue" has sent nothing yet
                await self.linger()
            raise _too_large(self._max_bytes)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        num_bytes = 0
        while self._more:
            bonus_s = num_bytes / self._pace_bytes if self._pace_bytes else 0.0
            part = await self._next(began_s + self._timeout_s + bonus_s)
            num_bytes += len(part)
            if num_bytes > self._max_bytes:
                await self.linger()
                raise _too_large(self._max_bytes)
            yield part

    async def linger(self) -> None:
        """Throws away what the client still sends, within reason, so that it reads our answer and no reset connection."""
        if self._more:
            self._more = False
            await _linger(self._receive)

    async def _next(self, until_s: float) -> bytes:
        try:
            async with asyncio.timeout_at(until_s):
                message = await self._receive()
        except TimeoutError:
            self._more = False  # nothing to linger for
            raise InvalidRequest(
                f"The request body did not arrive within {self._timeout_s:g} s. Send it at once.", code="body_timeout"
            ) from None
        if message["type"] == "http.disconnect":
            raise RequestCancelled("The client went away before its request was complete.")
        self._more = message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part


async def _linger(receive: Receive) -> None:
    """Throws away what the client is sending, within reason, so that it reads our answer and not a reset connection."""
    num_bytes = 0
    try:
        async with asyncio.timeout(_LINGER_S):
            while num_bytes < _LINGER_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                num_bytes += len(message.get("body", b""))
    except TimeoutError:
        return


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request body is larger than the {max_bytes} bytes that this server takes. Send less.")


def check_encoding(headers: Mapping[str, str]) -> None:
    """Takes bodies as they are only: what a few compressed bytes grow to is not known before it is there.

    Raises:
        InvalidRequest: The body is compressed.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise InvalidRequest(
            f"Unsupported content encoding {encoding[:40]!r}. Send the body as it is, not compressed.",
            code="unsupported_content_encoding",
        )


def check_content_type(headers: Mapping[str, str]) -> None:
    """Accepts JSON, and a missing content type as JSON.

    Raises:
        InvalidRequest: The body is said to be something else.
    """
    check_encoding(headers)
    content_type = headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind in ("", "application/json") or (kind.startswith("application/") and kind.endswith("+json")):
        return
    raise InvalidRequest(
        f"Unsupported content type {kind[:80]!r}. Send JSON with the header 'content-type: application/json'.",
        code="unsupported_content_type",
    )


def parse_json(body: bytes, schema: type[BodyT]) -> BodyT:
    """Parses and validates a JSON body.

    Raises:
        InvalidRequest: It is not JSON, or not what ``schema`` wants; ``param`` is the dotted path of the offender.
    """
    if b"NaN" in body or b"Infinity" in body:
        _decode(body)  # pydantic's parser takes these words as numbers; JSON has no such numbers
    try:
        return schema.model_validate_json(body)
    except ValidationError as failure:
        raise explain(failure, _decode(body), schema) from None


def _decode(body: bytes) -> object:
    if not body.strip():
        raise InvalidRequest("The request body is empty. Send a JSON object.", code="invalid_json")
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as failure:
        reason = str(failure)
    except RecursionError:
        reason = "it is nested too deeply"
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    raise InvalidRequest(f"The request body is not valid JSON: {reason}.", code="invalid_json")


def explain(failure: ValidationError, data: object, schema: type[BaseModel]) -> InvalidRequest:
    """The one error to tell a client about, from all that pydantic found.

    For a parameter that may have several forms pydantic reports each form's mismatch; the deepest is the one that the
    client most probably meant. Otherwise the first in the order of the schema is told.

    Args:
        failure: What pydantic raised.
        data: The parsed body that it was raised for.
        schema: The class that it was validated against.
    """
    details = failure.errors(include_url=False, include_input=False)
    paths = [_path_in(detail, data) for detail in details]
    first = paths[0][:1]
    rivals = [index for index, path in enumerate(paths) if path[:1] == first]
    chosen = max(rivals, key=lambda index: (len(paths[index]), -index))
    same = [details[index] for index in rivals if paths[index] == paths[chosen]]
    detail, path = details[chosen], paths[chosen]
    param = ".".join(str(part) for part in path) or None
    code = _CODES.get(detail["type"])
    if code is None:
        code = "invalid_type" if detail["type"].endswith(("_type", "_parsing", "_attributes_type")) else "invalid_value"
    return InvalidRequest(_message(same, path, schema), param=param, code=code)


def _message(details: Sequence[ErrorDetails], path: Sequence[str | int], schema: type[BaseModel]) -> str:
    detail = details[0]
    dotted = ".".join(str(part) for part in path)
    if detail["type"] == "extra_forbidden":
        close = nearest(str(path[-1]), field_names_at(schema, path[:-1]))
        return f"Unknown parameter {dotted[:200]!r}." + (f" Did you mean {close!r}?" if close else "")
    if detail["type"] == "missing":
        return f"Missing required parameter {dotted!r}."
    reasons: list[str] = []
    for each in details:
        reason = each["msg"].removeprefix("Value error, ").removesuffix(".")
        if reason not in reasons:
            reasons.append(reason)
    text = "; or ".join(reasons)
    return f"Invalid parameter {dotted!r}: {text}." if dotted else f"Invalid request body: {text}."


def _path_in(detail: ErrorDetails, data: object) -> tuple[str | int, ...]:
    """Pydantic's location without the names of union members: only steps that exist in the client's data."""
    path: list[str | int] = []
    here = data
    for position, part in enumerate(detail["loc"]):
        is_last = position == len(detail["loc"]) - 1
        if isinstance(here, dict) and isinstance(part, str):
            members = cast(dict[str, object], here)
            if part in members:
                path.append(part)
                here = members[part]
            elif is_last and detail["type"] == "missing":
                path.append(part)
        elif isinstance(here, list) and isinstance(part, int):
            items = cast(list[object], here)
            if part < len(items):
                path.append(part)
                here = items[part]
    return tuple(path)
