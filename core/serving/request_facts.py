"""What a request says beside its body: headers, path parameters, query, deadline. The same for HTTP calls and sockets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.types import Scope

from sixfold.core.errors import InvalidRequest
from sixfold.core.serving.form_fields import parse_fields
from sixfold.core.serving.form_reader import parse_urlencoded

BodyT = TypeVar("BodyT", bound=BaseModel)


def read_headers(scope: Scope) -> dict[str, str]:
    """The headers with lower-case names; of several with one name the last."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def read_path_params(scope: Scope) -> Mapping[str, str]:
    """What stands in the place of each ``{name}`` of the route's path."""
    params: Mapping[str, Any] = scope.get("path_params", {})
    return {name: str(value) for name, value in params.items()}


def read_query(scope: Scope, schema: type[BodyT]) -> BodyT:
    """Validates the query string.

    Raises:
        InvalidRequest: A parameter is missing, unknown or of a wrong type; ``param`` names it.
    """
    return parse_fields(parse_urlencoded(scope.get("query_string", b"")), schema)


def read_timeout_s(headers: Mapping[str, str], limit_s: float | None) -> float | None:
    """Seconds that the request may take: what its ``x-request-timeout-s`` header asks for, up to the server's limit.

    Raises:
        InvalidRequest: The header is no positive number.
    """
    header = headers.get("x-request-timeout-s")
    if header is None:
        return limit_s
    try:
        wanted_s = float(header)
    except ValueError:
        wanted_s = math.nan
    if not (math.isfinite(wanted_s) and wanted_s > 0):
        raise InvalidRequest(f"Header x-request-timeout-s: {header[:40]!r} is no positive number of seconds.")
    return wanted_s if limit_s is None else min(wanted_s, limit_s)
