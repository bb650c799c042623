"""What the conformance kit asks of a modality's models: a request of each kind, and what of its answer is content."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import JsonValue

Fields = Mapping[str, JsonValue | bytes]


def whole_answer(answer: Any) -> object:
    """All of it."""
    return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A request that the conformance kit sends in a client's place; part of an `Api`.

    Attributes:
        operation: What is asked for; models whose family lacks it are not asked.
        path: Where it is sent by POST.
        make_body: The fields for a model's name and a number. Equal numbers make equal requests, other numbers others that
            are about as much work. Whatever draws random numbers gets a seed. The answer is whole, not a stream.
        content: The part of the answer that may depend on the request alone, as numbers, texts and sequences of them. It
            gets the parsed JSON, or the bytes of what is no JSON. Ids and times must not be part of it.
        is_form: Whether the fields are sent as multipart/form-data; those of bytes are files.
        is_job: Whether the answer is a job with ``id`` and ``status``: read by GET below the path until it is
            ``completed``, its file is ``content`` below it, DELETE ends it.
        stream: Fields that make the answer a stream; None where there is none.
        framing: How a stream comes: server-sent events, or bytes.
        stream_end: The data of the last frame of a stream of events, or the ``type`` in it.
    """

    operation: str
    path: str
    make_body: Callable[[str, int], Fields]
    content: Callable[[Any], object] = whole_answer
    is_form: bool = False
    is_job: bool = False
    stream: Fields | None = None
    framing: Literal["sse", "bytes"] = "sse"
    stream_end: str = "[DONE]"
