"""What ``sixfold bench`` asks of language models: streamed chats and completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sixfold.core.benchmark.workload import Sample, Workload


def _streamed(sample: Sample) -> dict[str, Any]:
    body: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    return body if sample.max_output_tokens is None else body | {"max_tokens": sample.max_output_tokens}


def _chat_body(model: str, sample: Sample) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": sample.text}], **_streamed(sample)}


def _completion_body(model: str, sample: Sample) -> dict[str, Any]:
    return {"model": model, "prompt": sample.text, **_streamed(sample)}


def _says_something(event: Mapping[str, Any]) -> bool:
    """Whether an event brings text, of the answer or of the reasoning before it, or a part of a call."""
    for choice in event.get("choices") or ():
        delta: dict[str, Any] = choice.get("delta") or {}
        if choice.get("text") or any(delta.get(name) for name in ("content", "reasoning_content", "tool_calls")):
            return True
    return False


WORKLOADS = (
    Workload(
        name="chat",
        summary="Streamed chats.",
        path="/v1/chat/completions",
        framing="sse",
        make_body=_chat_body,
        has_output=_says_something,
    ),
    Workload(
        name="completions",
        summary="Streamed completions.",
        path="/v1/completions",
        framing="sse",
        make_body=_completion_body,
        has_output=_says_something,
    ),
)
