"""Responses and their items as OpenAI writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import msgspec

from sixfold.plugins.llm.generation import TokenLogprob
from sixfold.plugins.llm.responses_schema import ResponsesBody

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(msgspec.Struct, frozen=True, tag="output_text"):
    """Text of a message."""

    text: str = ""
    annotations: tuple[()] = ()
    logprobs: tuple[dict[str, Any], ...] = ()


class ReasoningText(msgspec.Struct, frozen=True, tag="reasoning_text"):
    """Text of reasoning."""

    text: str = ""


class MessageItem(msgspec.Struct, frozen=True, kw_only=True, tag="message"):
    """What the model says."""

    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: tuple[OutputText, ...] = ()


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True, tag="reasoning"):
    """What it thought before."""

    id: str
    status: ItemStatus
    summary: tuple[()] = ()
    content: tuple[ReasoningText, ...] = ()


class FunctionCallItem(msgspec.Struct, frozen=True, kw_only=True, tag="function_call"):
    """A function that it wants called."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str = ""


Item = MessageItem | ReasoningItem | FunctionCallItem


class ResponseObject(TypedDict):
    """A response: what is told of it in every case. `request_members` adds what it repeats of its request."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: ResponseStatus
    error: dict[str, str] | None
    incomplete_details: dict[str, str] | None
    model: str
    output: list[Item]
    usage: dict[str, Any] | None


class DeletedResponse(TypedDict):
    """The answer to ``DELETE /v1/responses/{response_id}``."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ErrorObject(msgspec.Struct, frozen=True):
    """Why a response failed."""

    code: str
    message: str


def logprob_objects(logprobs: tuple[TokenLogprob, ...]) -> tuple[dict[str, Any], ...]:
    """Log probabilities in this API's shape."""

    def one(token: Any) -> dict[str, Any]:
        return {"token": token.text, "logprob": token.logprob, "bytes": list(token.raw)}

    return tuple(one(token.chosen) | {"top_logprobs": [one(top) for top in token.top]} for token in logprobs)


def usage_object(counts: Mapping[str, int]) -> dict[str, Any]:
    """Counted tokens in this API's words."""
    num_input, num_output = counts["prompt_tokens"], counts["completion_tokens"]
    return {
        "input_tokens": num_input,
        "input_tokens_details": {"cached_tokens": counts.get("cached_tokens", 0), "cache_write_tokens": 0},
        "output_tokens": num_output,
        "output_tokens_details": {"reasoning_tokens": counts.get("reasoning_tokens", 0)},
        "total_tokens": num_input + num_output,
    }


def request_members(body: ResponsesBody) -> dict[str, Any]:
    """What a response repeats of its request."""
    form = body.text.format if body.text is not None else None
    choice = body.tool_choice or "auto"
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": body.temperature,
        "text": {
            "format": {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True),
        },
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [
            tool.model_dump() | {"parameters": tool.parameters or {}, "strict": bool(tool.strict)}
            for tool in body.tools or ()
        ],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
        "user": body.user,
    }
