"""The one shape of every error, as OpenAI's clients read it."""

from __future__ import annotations

from typing import Any, cast

from sixfold.core.testing.client import Answer
from sixfold.core.testing.failure import fail, require

_MEMBERS = {"message", "type", "param", "code"}


def check_error(answer: Answer, status: int, what: str) -> dict[str, Any]:
    """The ``error`` of an answer.

    Args:
        answer: To be an error.
        status: That it should have.
        what: Was asked, for messages.

    Raises:
        CheckFailed: It has another status or shape.
    """
    seen = f"{what}: answered with {answer.status} {answer.body[:300]!r}"
    require(answer.status == status, f"{seen}; {status} is due.")
    require(answer.is_json, f"{seen}; errors are application/json. Raise a RequestError, the core writes it.")
    require("x-request-id" in answer.headers, f"{seen}; the header x-request-id is missing.")
    try:
        body: Any = answer.json
    except ValueError:
        fail(f"{seen}; that is no JSON.")
    found = _member(body)
    require(
        found is not None and set(found) == _MEMBERS,
        f'{seen}; the shape is {{"error": {{"message", "type", "param", "code"}}}}. Raise a RequestError, the core writes it.',
    )
    error = found or {}
    require(isinstance(error["message"], str) and error["message"], f"{seen}; the message is empty.")
    return error


def _member(body: object) -> dict[str, Any] | None:
    """The one member ``error`` of a body, if that is its shape."""
    if not isinstance(body, dict):
        return None
    members = cast("dict[str, Any]", body)
    is_shaped = set(members) == {"error"} and isinstance(members["error"], dict)
    return cast("dict[str, Any]", members["error"]) if is_shaped else None
