"""Every error that leaves the server, in OpenAI's shape with all four keys."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from sixfold.core.errors import REFUSED, WOULD_BE_LATE, NotAuthenticated, RequestError

_PATH = re.compile(r"(?<![\w.:/])/(?!v\d+/)(?:[^\s/'\"<>]+/)+[^\s'\"<>,;)]*|\b[A-Za-z]:\\[^\s'\"<>]+")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b")

CODES_OF_STATUS: Mapping[int, str] = {
    400: "invalid_value",
    401: "invalid_api_key",
    403: "permission_denied",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    415: "unsupported_content_type",
    429: "rate_limit_exceeded",
    503: "not_ready",
    504: "deadline_exceeded",
}
"""``error.code`` of errors that only have a status: routing errors and HTTPExceptions of plain LitAPIs."""


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """What stands under ``error``; all four keys are always there."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """The JSON body of an error."""

    error: ErrorDetail


def sanitize(message: str) -> str:
    """Takes file paths, memory addresses and network addresses out of a message for clients."""
    return _ADDRESS.sub("<address>", _PATH.sub("<path>", message))


def error_json(error: RequestError) -> bytes:
    """The body of an error, also what an SSE error frame holds."""
    detail = ErrorDetail(message=sanitize(error.message), type=error.type, param=error.param, code=error.code)
    return msgspec.json.encode(ErrorBody(detail))


def error_response(error: RequestError, *, close: bool = False) -> Response:
    """The whole answer to a request that failed with ``error``.

    Args:
        error: What went wrong; its class says the status and whether clients should retry.
        close: Whether the connection must end, because the rest of the request was not read.
    """
    headers = {"x-should-retry": "true" if error.retryable else "false"}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
        headers["retry-after-ms"] = str(max(1, math.ceil(error.retry_after_s * 1000)))
    if error.code == WOULD_BE_LATE:
        headers[REFUSED] = WOULD_BE_LATE
    if isinstance(error, NotAuthenticated):
        headers["www-authenticate"] = "Bearer"
    if close:
        headers["connection"] = "close"
    return Response(error_json(error), error.status, headers, "application/json")


def status_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a request that failed with a bare HTTP status, such as a route that does not exist."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    if status == 429:
        kind = "rate_limit_error"
    code = CODES_OF_STATUS.get(status, "internal_error" if status >= 500 else "invalid_value")
    body = msgspec.json.encode(ErrorBody(ErrorDetail(message=sanitize(message), type=kind, param=None, code=code)))
    retry = "true" if status in (429, 503) else "false"
    return Response(body, status, {**(headers or {}), "x-should-retry": retry}, "application/json")


def internal_error_response(request_id: str) -> Response:
    """The answer to a request that hit a defect of ours: says nothing but whom to ask."""
    message = f"The server made a mistake. It was logged; quote the request id {request_id} to the operator."
    return status_response(500, message)
