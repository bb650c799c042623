"""Turns answers into lines of the output and the error file."""

from __future__ import annotations

import base64

import msgspec

from sixfold.core.batches.lines import Line
from sixfold.core.batches.outcomes import Outcome
from sixfold.core.batches.records import BatchUsage, derived_id
from sixfold.core.serving.inner_calls import InnerAnswer


class BytesBody(msgspec.Struct, frozen=True):
    """A body that is neither JSON nor text, such as sound."""

    content_type: str
    data: str
    """Base64."""


class TextBody(msgspec.Struct, frozen=True):
    """A body that is text, such as subtitles."""

    content_type: str
    text: str


class _Response(msgspec.Struct, frozen=True):
    status_code: int
    request_id: str
    body: msgspec.Raw | BytesBody | TextBody


class _Error(msgspec.Struct, frozen=True):
    code: str
    message: str


class _OutputLine(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    custom_id: str
    response: _Response | None
    error: _Error | None


class _Details(msgspec.Struct):
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class _AnswerUsage(msgspec.Struct):
    """The counts of any endpoint, old names and new."""

    input_tokens: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: _Details | None = None
    prompt_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class _AnswerBody(msgspec.Struct):
    usage: _AnswerUsage | None = None


class _AnswerResponse(msgspec.Struct):
    body: _AnswerBody | None = None


class _AnswerLine(msgspec.Struct):
    response: _AnswerResponse | None = None


def request_id_of(batch_id: str, number: int) -> str:
    """The id of a line's request in answers and logs; the same each time that it is tried."""
    return derived_id("batch_req_", batch_id, number)


def outcome_of(batch_id: str, number: int, line: Line, answer: InnerAnswer) -> Outcome:
    """What is kept of an answer: it succeeded if its status is 200 to 299."""
    kind = answer.content_type.partition(";")[0].strip().lower()
    body: msgspec.Raw | BytesBody | TextBody
    if kind == "application/json":
        body = msgspec.Raw(answer.body)
    elif kind.startswith("text/"):
        body = TextBody(answer.content_type, answer.body.decode(errors="replace"))
    else:
        body = BytesBody(answer.content_type, base64.b64encode(answer.body).decode())
    request_id = request_id_of(batch_id, number)
    response = _Response(answer.status, request_id, body)
    output = _OutputLine(id=request_id, custom_id=line.custom_id, response=response, error=None)
    return Outcome(line=number, succeeded=200 <= answer.status < 300, data=msgspec.json.encode(output))


def outcome_without_answer(batch_id: str, number: int, line: Line, *, code: str, message: str) -> Outcome:
    """What is kept of a line that was never answered."""
    output = _OutputLine(
        id=request_id_of(batch_id, number), custom_id=line.custom_id, response=None, error=_Error(code, message)
    )
    return Outcome(line=number, succeeded=False, data=msgspec.json.encode(output))


class UsageSum:
    """Adds up the tokens of output lines."""

    def __init__(self) -> None:
        self.total = BatchUsage()

    def add(self, data: bytes) -> None:
        """Counts one output line."""
        try:
            response = msgspec.json.decode(data, type=_AnswerLine).response
        except msgspec.DecodeError:  # an answer whose usage has another shape, or none
            return
        usage = response.body.usage if response is not None and response.body is not None else None
        if usage is None:
            return
        total = self.total
        num_input = usage.input_tokens or usage.prompt_tokens
        num_output = usage.output_tokens or usage.completion_tokens
        total.input_tokens += num_input
        total.output_tokens += num_output
        total.total_tokens += usage.total_tokens or num_input + num_output
        for details in (usage.input_tokens_details, usage.prompt_tokens_details):
            total.input_tokens_details["cached_tokens"] += details.cached_tokens if details else 0
        for details in (usage.output_tokens_details, usage.completion_tokens_details):
            total.output_tokens_details["reasoning_tokens"] += details.reasoning_tokens if details else 0
