"""Streams of ``/v1/chat/completions`` whose text must be taken apart: reasoning and calls of tools."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sixfold.core.messages import Finished, Increment
from sixfold.core.serving.api import Running
from sixfold.core.serving.sse import DONE
from sixfold.plugins.llm.answer_parser import AnswerParser, ParserChoice
from sixfold.plugins.llm.answer_parts import ArgumentsPart, CallStart, Part, ReasoningPart, TextPart
from sixfold.plugins.llm.generation import TextDelta, TokenLogprob
from sixfold.plugins.llm.wire import JSON, ChunkTemplate, Head
from sixfold.plugins.llm.wire_chat import logprobs_object


async def parsed_chat_chunks(
    head: Head, running: Running, *, logprobs: bool, include_usage: bool, parsers: ParserChoice
) -> AsyncIterator[bytes]:
    """The frames of a streamed answer, ``[DONE]`` included.

    Args:
        head: Its id and so on.
        running: The runtime's events.
        logprobs: Whether they were asked for.
        include_usage: Whether a chunk shall count the tokens.
        parsers: How each choice is taken apart.
    """
    template = ChunkTemplate(head, "chat.completion.chunk", include_usage=include_usage)
    choices: dict[int, _ChoiceStream] = {}
    async for events in running:
        for event in events:
            if isinstance(event, Increment):
                delta = event.output
                assert isinstance(delta, TextDelta)
                choice = choices.get(delta.choice)
                if choice is None:
                    parser = parsers.parser(opens_in_reasoning=delta.opens_in_reasoning)
                    choice = choices[delta.choice] = _ChoiceStream(template, delta.choice, parser, logprobs=logprobs)
                    yield choice.opening()
                for frame in choice.frames(delta):
                    yield frame
            elif isinstance(event, Finished) and include_usage:
                yield template.usage(event.usage.counts)
    yield DONE


class _ChoiceStream:
    """Makes the frames of one choice.

    The log probabilities of tokens that are held back go out with the next piece of whatever kind, so that none is lost.
    """

    def __init__(self, template: ChunkTemplate, index: int, parser: AnswerParser, *, logprobs: bool) -> None:
        self._start = template.choice_start(index)
        self._end = template.end
        self._parser = parser
        self._wants_logprobs = logprobs
        self._logprobs: list[TokenLogprob] = []
        self._num_calls = 0

    def opening(self) -> bytes:
        return self._frame(b'{"role":"assistant","content":null,"refusal":null}', b"null")

    def frames(self, delta: TextDelta) -> list[bytes]:
        if self._wants_logprobs:
            self._logprobs += delta.logprobs
        parts = self._parser.push(delta.text)
        if delta.finish_reason is not None:
            parts += self._parser.flush()
        frames = [self._frame(self._delta(part), b"null") for part in parts[:-1]]
        if parts:
            frames.append(self._frame(self._delta(parts[-1]), self._take_logprobs()))
        if delta.finish_reason is not None:
            calls = self._num_calls and delta.finish_reason == "stop"
            reason = b'"tool_calls"' if calls else JSON.encode(delta.finish_reason)
            frames.append(self._frame(b"{}", self._take_logprobs(), reason))
        return frames

    def _delta(self, part: Part) -> bytes:
        if isinstance(part, TextPart):
            return b'{"content":%b}' % JSON.encode(part.text)
        if isinstance(part, ReasoningPart):
            text = JSON.encode(part.text)
            return b'{"reasoning_content":%b,"reasoning":%b}' % (text, text)
        if isinstance(part, CallStart):
            self._num_calls += 1
            function = b'{"name":%b,"arguments":""}' % JSON.encode(part.name)
            call = b'{"index":%d,"id":%b,"type":"function","function":%b}'
            return b'{"tool_calls":[' + call % (part.index, JSON.encode(part.id), function) + b"]}"
        assert isinstance(part, ArgumentsPart)
        arguments = JSON.encode(part.text)
        return b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}' % (part.index, arguments)

    def _take_logprobs(self) -> bytes:
        if not self._logprobs:
            return b"null"
        taken, self._logprobs = self._logprobs, []
        return JSON.encode(logprobs_object(taken))

    def _frame(self, delta: bytes, logprobs: bytes, reason: bytes = b"null") -> bytes:
        return b'%b"delta":%b,"logprobs":%b,"finish_reason":%b%b' % (self._start, delta, logprobs, reason, self._end)
