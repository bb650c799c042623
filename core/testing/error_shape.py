"""The one shape of every error, as OpenAI's clients read it."""

from __future__ import annotations

from typing import Any

from sixfold.core.testing.checks import fail, require
from sixfold.core.testing.client import Answer

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
        body = answer.json
    except ValueError:
        fail(f"{seen}; that is no JSON.")
    is_shaped = isinstance(body, dict) and set(body) == {"error"} and isinstance(body["error"], dict)
    require(
        is_shaped and set(body["error"]) == _MEMBERS,
        f'{seen}; the shape is {{"error": {{"message", "type", "param", "code"}}}}. Raise a RequestError, the core writes it.',
    )
    error: dict[str, Any] = body["error"]
    require(isinstance(error["message"], str) and error["message"], f"{seen}; the message is empty.")
    return error
