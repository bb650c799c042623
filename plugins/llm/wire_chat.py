"""Answers of ``/v1/chat/completions``: one object, or a stream of chunks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Literal

import msgspec

from sixfold.core.messages import Finished, Increment
from sixfold.core.serving.api import Running
from sixfold.core.serving.sse import DONE
from sixfold.plugins.llm.answer_parser import ParsedAnswer, ParserChoice
from sixfold.plugins.llm.generation import Choice, FinishReason, Generation, TextDelta, TokenLogprob, TopToken
from sixfold.plugins.llm.wire import (
    JSON,
    ChunkTemplate,
    Head,
    KvTransferObject,
    UsageObject,
    kv_transfer_object,
    usage_object,
)


class TokenObject(msgspec.Struct, frozen=True):
    """One token that could have been chosen."""

    token: str
    logprob: float
    bytes: tuple[int, ...]


class ChosenTokenObject(msgspec.Struct, frozen=True):
    """One token of the answer."""

    token: str
    logprob: float
    bytes: tuple[int, ...]
    top_logprobs: tuple[TokenObject, ...]


class LogprobsObject(msgspec.Struct, frozen=True):
    """Log probabilities of an answer or a part of it."""

    content: tuple[ChosenTokenObject, ...]
    refusal: None = None


class FunctionObject(msgspec.Struct, frozen=True):
    """What is called, and with what: the text of a JSON object."""

    name: str
    arguments: str


class ToolCallObject(msgspec.Struct, frozen=True):
    """One call of a tool."""

    id: str
    type: Literal["function"]
    function: FunctionObject


class MessageObject(msgspec.Struct, frozen=True):
    """The answer as a turn. Reasoning has two names: the older one of many servers, and the one that vLLM uses now."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: tuple[ToolCallObject, ...] | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType | None = msgspec.UNSET
    reasoning: str | msgspec.UnsetType | None = msgspec.UNSET


class ChoiceObject(msgspec.Struct, frozen=True):
    """One of the answers."""

    index: int
    message: MessageObject
    logprobs: LogprobsObject | None
    finish_reason: FinishReason | Literal["tool_calls"]


class ChatObject(msgspec.Struct, frozen=True):
    """The body of an answer that is not streamed."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: tuple[ChoiceObject, ...]
    usage: UsageObject
    kv_transfer_params: KvTransferObject | msgspec.UnsetType = msgspec.UNSET


def chat_object(head: Head, finished: Finished[Generation], *, logprobs: bool, parsers: ParserChoice) -> ChatObject:
    """The whole answer.

    Args:
        head: Its id and so on.
        finished: What the runtime gave.
        logprobs: Whether they were asked for.
        parsers: How each choice is taken apart.
    """
    choices = tuple(_choice_object(i, c, logprobs, parsers) for i, c in enumerate(finished.result.choices))
    usage, transfer = usage_object(finished.usage.counts), kv_transfer_object(finished.result)
    return ChatObject(head.id, "chat.completion", head.created, head.model, choices, usage, transfer)


def parse_choice(choice: Choice, parsers: ParserChoice) -> ParsedAnswer:
    """A finished choice, taken apart."""
    parser = parsers.parser(opens_in_reasoning=choice.opens_in_reasoning)
    return ParsedAnswer.of([*parser.push(choice.text), *parser.flush()])


def _choice_object(index: int, choice: Choice, logprobs: bool, parsers: ParserChoice) -> ChoiceObject:
    answer = parse_choice(choice, parsers)
    calls = tuple(ToolCallObject(c.id, "function", FunctionObject(c.name, c.arguments)) for c in answer.calls)
    reasoning = (answer.reasoning or None) if parsers.thinks else msgspec.UNSET
    return ChoiceObject(
        index=index,
        message=MessageObject(
            role="assistant",
            content=answer.text if answer.text or not calls else None,
            tool_calls=calls or msgspec.UNSET,
            reasoning_content=reasoning,
            reasoning=reasoning,
        ),
        logprobs=logprobs_object(choice.logprobs) if logprobs else None,
        finish_reason="tool_calls" if calls and choice.finish_reason == "stop" else choice.finish_reason,
    )


async def chat_chunks(head: Head, running: Running, *, logprobs: bool, include_usage: bool) -> AsyncIterator[bytes]:
    """The frames of a streamed answer that is nothing but text, ``[DONE]`` included; see `wire_chat_parts` for others.

    Args:
        head: Its id and so on.
        running: The runtime's events.
        logprobs: Whether they were asked for.
        include_usage: Whether a chunk shall count the tokens.
    """
    template = ChunkTemplate(head, "chat.completion.chunk", include_usage=include_usage)
    end = b'},"logprobs":null,"finish_reason":null' + template.end
    starts: dict[int, bytes] = {}
    async for events in running:
        for event in events:
            if isinstance(event, Increment):
                delta = event.output
                assert isinstance(delta, TextDelta)
                start = starts.get(delta.choice)
                if start is None:
                    opening = template.choice_start(delta.choice)
                    start = starts[delta.choice] = opening + b'"delta":{"content":'
                    yield opening + b'"delta":{"role":"assistant","content":"","refusal":null' + end
                if delta.logprobs and logprobs:
                    yield content_with_logprobs(start, delta, template.end)
                elif delta.text:
                    yield start + JSON.encode(delta.text) + end
                if delta.finish_reason is not None:
                    yield b'%b"delta":{},"logprobs":null,"finish_reason":"%b"%b' % (
                        template.choice_start(delta.choice),
                        delta.finish_reason.encode(),
                        template.end,
                    )
            elif isinstance(event, Finished) and include_usage:
                yield template.usage(event.usage.counts)
    yield DONE


def content_with_logprobs(start: bytes, delta: TextDelta, end: bytes) -> bytes:
    """A frame with a piece of text and the log probabilities of its tokens."""
    text, logprobs = JSON.encode(delta.text), JSON.encode(logprobs_object(delta.logprobs))
    return b'%b%b},"logprobs":%b,"finish_reason":null%b' % (start, text, logprobs, end)


def logprobs_object(logprobs: Sequence[TokenLogprob]) -> LogprobsObject:
    """OpenAI's form of log probabilities."""
    return LogprobsObject(
        content=tuple(
            ChosenTokenObject(
                token=token.chosen.text,
                logprob=token.chosen.logprob,
                bytes=tuple(token.chosen.raw),
                top_logprobs=tuple(map(_token_object, token.top)),
            )
            for token in logprobs
        )
    )


def _token_object(token: TopToken) -> TokenObject:
    return TokenObject(token=token.text, logprob=token.logprob, bytes=tuple(token.raw))
