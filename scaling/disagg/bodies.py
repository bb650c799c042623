"""The two requests that one request becomes: one that computes its prompt, one that answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

TRANSFER_FIELD = "kv_transfer_params"
"""vLLM's name for how a prompt is computed by one server and answered by another."""

SPLIT_PATHS = ("/v1/chat/completions", "/v1/completions")
"""Endpoints whose prompts can be computed elsewhere."""

# They say how an answer is chosen and sent. The one token that computing a prompt ends with is thrown away.
_OF_THE_ANSWER = (
    "stream",
    "stream_options",
    "n",
    "best_of",
    "min_tokens",
    "max_completion_tokens",
    "logprobs",
    "top_logprobs",
    "stop",
    "seed",
)


def read_object(body: bytes) -> dict[str, Any]:
    """A body's JSON object; an empty one for what is none: whoever it is sent to says what is wrong with it."""
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (ValueError, RecursionError):  # what decoders raise
        return {}


def can_split(path: str, body: Mapping[str, Any]) -> bool:
    """Whether a request has one prompt that may be computed elsewhere.

    Args:
        path: Of its endpoint.
        body: Its JSON object, as the client sent it.
    """
    if path not in SPLIT_PATHS or TRANSFER_FIELD in body or body.get("echo"):
        return False
    if path == "/v1/chat/completions":
        return isinstance(body.get("messages"), list)
    prompt = body.get("prompt")
    if isinstance(prompt, list):
        items = cast("list[object]", prompt)
        return len(items) == 1 or all(type(item) is int for item in items)
    return isinstance(prompt, str)


def prefill_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The request that computes the prompt: what shapes the prompt stays, what shapes the answer goes."""
    kept = {name: value for name, value in body.items() if name not in _OF_THE_ANSWER}
    return kept | {"max_tokens": 1, TRANSFER_FIELD: {"do_remote_decode": True}}


def handle_of(answer: object) -> Mapping[str, Any] | None:
    """What the answer to `prefill_body` gives to the other server; None if it has no handle, as when no block was full."""
    found = _object(_object(answer).get(TRANSFER_FIELD))
    return found if found.get("handle") is not None else None


def _object(value: object) -> Mapping[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def decode_body(body: Mapping[str, Any], handle: Mapping[str, Any] | None) -> dict[str, Any]:
    """The request that answers; without a handle, the client's own."""
    return dict(body) if handle is None else {**body, TRANSFER_FIELD: dict(handle)}
