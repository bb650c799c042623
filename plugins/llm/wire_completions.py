"""Answers of ``/v1/completions``: one object, or a stream of chunks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Literal

import msgspec

from sixfold.core.messages import Finished, Increment
from sixfold.core.serving.api import Running
from sixfold.core.serving.sse import DONE
from sixfold.plugins.llm.generation import FinishReason, Generation, TextDelta, TokenLogprob
from sixfold.plugins.llm.wire import (
    JSON,
    ChunkTemplate,
    Head,
    KvTransferObject,
    UsageObject,
    kv_transfer_object,
    usage_object,
)


class LogprobsObject(msgspec.Struct, frozen=True):
    """Log probabilities in the older shape: one list per kind."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float | None, ...]
    top_logprobs: tuple[dict[str, float] | None, ...]
    text_offset: tuple[int, ...]


class ChoiceObject(msgspec.Struct, frozen=True):
    """One of the answers."""

    index: int
    text: str
    logprobs: LogprobsObject | None
    finish_reason: FinishReason


class CompletionObject(msgspec.Struct, frozen=True):
    """The body of an answer that is not streamed."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: tuple[ChoiceObject, ...]
    usage: UsageObject
    kv_transfer_params: KvTransferObject | msgspec.UnsetType = msgspec.UNSET


def completion_object(
    head: Head, finished: Finished[Generation], *, logprobs: bool, echo: bool = False
) -> CompletionObject:
    """The whole answer.

    Args:
        head: Its id and so on.
        finished: What the runtime gave.
        logprobs: Whether they were asked for.
        echo: Whether the prompt precedes the answer.
    """
    choices = tuple(
        ChoiceObject(
            index=index,
            text=choice.text,
            logprobs=_logprobs_object(choice.logprobs, 0, echo=echo) if logprobs else None,
            finish_reason=choice.finish_reason,
        )
        for index, choice in enumerate(finished.result.choices)
    )
    usage = usage_object(finished.usage.counts)
    transfer = kv_transfer_object(finished.result)
    return CompletionObject(head.id, "text_completion", head.created, head.model, choices, usage, transfer)


async def completion_chunks(
    head: Head, running: Running, *, logprobs: bool, include_usage: bool, echo: bool = False
) -> AsyncIterator[bytes]:
    """The frames of a streamed answer, ``[DONE]`` included.

    Args:
        head: Its id and so on.
        running: The runtime's events.
        logprobs: Whether they were asked for.
        include_usage: Whether a chunk shall count the tokens.
        echo: Whether the prompt precedes the answer.
    """
    template = ChunkTemplate(head, "text_completion", include_usage=include_usage)
    end = b',"logprobs":null,"finish_reason":null' + template.end
    starts: dict[int, bytes] = {}
    offsets: dict[int, int] = {}
    async for events in running:
        for event in events:
            if isinstance(event, Increment):
                delta = event.output
                assert isinstance(delta, TextDelta)
                start = starts.get(delta.choice)
                if start is None:
                    start = starts[delta.choice] = template.choice_start(delta.choice) + b'"text":'
                if delta.finish_reason is None and not delta.logprobs:
                    yield start + JSON.encode(delta.text) + end
                else:
                    offset = offsets.get(delta.choice, 0)
                    members, offsets[delta.choice] = _last_members(delta, offset, logprobs=logprobs, echo=echo)
                    yield start + members + template.end
            elif isinstance(event, Finished) and include_usage:
                yield template.usage(event.usage.counts)
    yield DONE


def _last_members(delta: TextDelta, offset: int, *, logprobs: bool, echo: bool) -> tuple[bytes, int]:
    """What follows ``"text":``, and the text offset of the next token."""
    shown: LogprobsObject | None = None
    if logprobs and delta.logprobs:
        shown = _logprobs_object(delta.logprobs, offset, echo=echo)
        offset += sum(map(len, shown.tokens))
    parts = (JSON.encode(delta.text), JSON.encode(shown), JSON.encode(delta.finish_reason))
    return b'%b,"logprobs":%b,"finish_reason":%b' % parts, offset


def _logprobs_object(logprobs: Sequence[TokenLogprob], offset: int, *, echo: bool) -> LogprobsObject:
    """Of some tokens from a place in the text on; the very first token of a prompt follows nothing, so it has null."""
    num_unknown = int(echo and offset == 0)
    offsets: list[int] = []
    for token in logprobs:
        offsets.append(offset)
        offset += len(token.chosen.text)
    return LogprobsObject(
        tokens=tuple(token.chosen.text for token in logprobs),
        token_logprobs=(*[None] * num_unknown, *(token.chosen.logprob for token in logprobs[num_unknown:])),
        # The chosen token is among the alternatives, also when it is not one of the likeliest.
        top_logprobs=(
            *[None] * num_unknown,
            *({top.text: top.logprob for top in (*token.top, token.chosen)} for token in logprobs[num_unknown:]),
        ),
        text_offset=tuple(offsets),
    )
