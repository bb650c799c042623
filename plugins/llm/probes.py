"""What the conformance kit asks of language models."""

from __future__ import annotations

from sixfold.core.probe import Fields, Probe

_SETTINGS: Fields = {"temperature": 0, "seed": 0, "max_tokens": 8}
_STREAM: Fields = {"stream": True}


def _chat_body(model: str, number: int) -> Fields:
    return {"model": model, "messages": [{"role": "user", "content": f"Count from {number} on."}], **_SETTINGS}


PROBES = (
    Probe(
        operation="chat",
        path="/v1/chat/completions",
        make_body=_chat_body,
        content=lambda answer: [choice["message"]["content"] for choice in answer["choices"]],
        stream=_STREAM,
    ),
    Probe(
        operation="complete",
        path="/v1/completions",
        make_body=lambda model, number: {"model": model, "prompt": f"{number}, {number + 1},", **_SETTINGS},
        content=lambda answer: [choice["text"] for choice in answer["choices"]],
        stream=_STREAM,
    ),
)
