"""Builds a response from the parts of an answer, and tells it as OpenAI's events.

The invariant of the order: an item is added, filled and done before the next is added, and every event has the next number.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec

from sixfold.core.errors import RequestError
from sixfold.core.messages import Finished, Increment
from sixfold.core.serving.api import Running
from sixfold.core.serving.sse import event_frame
from sixfold.plugins.llm.answer_parser import AnswerParser, ParserChoice
from sixfold.plugins.llm.answer_parts import ArgumentsPart, CallStart, Part, ReasoningPart, TextPart
from sixfold.plugins.llm.generation import FinishReason, Generation, TextDelta, TokenLogprob
from sixfold.plugins.llm.responses_objects import (
    ErrorObject,
    FunctionCallItem,
    Item,
    ItemStatus,
    MessageItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    ResponseStatus,
    logprob_objects,
    usage_object,
)
from sixfold.plugins.llm.wire import JSON, Head

Event = dict[str, Any]
Finish = Callable[[ResponseStatus, Mapping[str, int]], Awaitable[dict[str, Any]]]


class ResponseBuilder:
    """One response. Every method returns the events that tell what it did, without their numbers.

    Args:
        head: Its id and so on.
        request: What it repeats of the request.
    """

    def __init__(self, head: Head, request: Mapping[str, Any]) -> None:
        self._head = head
        self._request = request
        self._items: list[Item] = []
        self._open: Item | None = None
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    def object(
        self,
        status: ResponseStatus,
        *,
        usage: Mapping[str, int] | None = None,
        error: ErrorObject | None = None,
        completed_s: int | None = None,
    ) -> dict[str, Any]:
        """The response as it is now."""
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self._head.id,
            "object": "response",
            "created_at": self._head.created,
            "completed_at": completed_s,
            "status": status,
            "error": error,
            "incomplete_details": cut,
            "model": self._head.model,
            "output": list(self._items),
            "usage": None if usage is None else usage_object(usage),
            **self._request,
        }

    def add(self, part: Part, logprobs: tuple[TokenLogprob, ...] = ()) -> list[Event]:
        """Takes a part of the answer."""
        events = [] if self._continues(part) else [*self.close("completed"), *self._start(part)]
        if isinstance(part, CallStart):
            return events
        self._text.append(part.text)
        event: Event = {"output_index": len(self._items), "delta": part.text}
        if isinstance(part, ArgumentsPart):
            return [*events, {"type": "response.function_call_arguments.delta"} | self._at(event)]
        event["content_index"] = 0
        if isinstance(part, ReasoningPart):
            return [*events, {"type": "response.reasoning_text.delta"} | self._at(event)]
        shown = logprob_objects(logprobs)
        self._logprobs += shown
        return [*events, {"type": "response.output_text.delta", "logprobs": shown} | self._at(event)]

    def close(self, status: ItemStatus) -> list[Event]:
        """Ends the open item, if there is one."""
        item = self._open
        if item is None:
            return []
        text = "".join(self._text)
        index: Event = {"output_index": len(self._items)}
        place = self._at(index)
        done: Item
        part: OutputText | ReasoningText
        if isinstance(item, FunctionCallItem):
            done = msgspec.structs.replace(item, arguments=text, status=status)
            first: Event = {"type": "response.function_call_arguments.done", "name": item.name, "arguments": text}
            events = [first | place]
        else:
            place["content_index"] = 0
            if isinstance(item, ReasoningItem):
                part = reasoning = ReasoningText(text)
                done = msgspec.structs.replace(item, content=(reasoning,), status=status)
                first = {"type": "response.reasoning_text.done", "text": text}
            else:
                part = said = OutputText(text, logprobs=tuple(self._logprobs))
                done = msgspec.structs.replace(item, content=(said,), status=status)
                first = {"type": "response.output_text.done", "text": text, "logprobs": self._logprobs}
            events = [first | place, {"type": "response.content_part.done", "part": part} | place]
        self._items.append(done)
        self._open, self._text, self._logprobs = None, [], []
        return [*events, {"type": "response.output_item.done", "item": done} | index]

    def end(self, reason: FinishReason) -> tuple[ResponseStatus, list[Event]]:
        """Ends the answer; an empty one still has a message."""
        events: list[Event] = []
        if not self._items and self._open is None:
            events = self._start(None)
        cut = reason == "length"
        return "incomplete" if cut else "completed", [*events, *self.close("incomplete" if cut else "completed")]

    def _continues(self, part: Part) -> bool:
        if isinstance(part, ArgumentsPart):
            return True
        if isinstance(part, CallStart):
            return False
        return isinstance(self._open, ReasoningItem if isinstance(part, ReasoningPart) else MessageItem)

    def _start(self, part: Part | None) -> list[Event]:
        item: Item
        if isinstance(part, CallStart):
            item = FunctionCallItem(id=_new_id("fc"), status="in_progress", call_id=part.id, name=part.name)
        elif isinstance(part, ReasoningPart):
            item = ReasoningItem(id=_new_id("rs"), status="in_progress")
        else:
            item = MessageItem(id=_new_id("msg"), status="in_progress")
        self._open = item
        index = len(self._items)
        added: Event = {"type": "response.output_item.added", "output_index": index, "item": item}
        if isinstance(item, FunctionCallItem):
            return [added]
        empty = ReasoningText() if isinstance(item, ReasoningItem) else OutputText()
        place = {"output_index": index, "content_index": 0, "part": empty}
        return [added, {"type": "response.content_part.added"} | self._at(place)]

    def _at(self, event: Event) -> Event:
        assert self._open is not None
        return event | {"item_id": self._open.id}


def whole_response(builder: ResponseBuilder, generation: Generation, parsers: ParserChoice) -> ResponseStatus:
    """Fills a response with a finished answer; returns its status."""
    (choice,) = generation.choices
    parser = parsers.parser(opens_in_reasoning=choice.opens_in_reasoning)
    logprobs = choice.logprobs
    for part in [*parser.push(choice.text), *parser.flush()]:
        builder.add(part, logprobs)
        if isinstance(part, TextPart):
            logprobs = ()
    status, _events = builder.end(choice.finish_reason)
    return status


class ResponseStream:
    """The events of one streamed response.

    Args:
        builder: Of the response.
        parsers: How its answer is taken apart.
    """

    def __init__(self, builder: ResponseBuilder, parsers: ParserChoice) -> None:
        self._builder = builder
        self._parsers = parsers
        self._parser: AnswerParser | None = None
        self._num_events = 0
        self._status: ResponseStatus = "completed"
        self._held: tuple[TokenLogprob, ...] = ()

    async def frames(self, running: Running, finish: Finish) -> AsyncIterator[bytes]:
        """The events as frames; a failure becomes an event, too.

        Args:
            running: The runtime's events.
            finish: Awaited with status and counts; gives the response's last form.
        """
        for kind in ("response.created", "response.in_progress"):
            yield self._frame({"type": kind, "response": self._builder.object("in_progress")})
        try:
            async for events in running:
                for event in events:
                    if isinstance(event, Increment):
                        assert isinstance(event.output, TextDelta)
                        for told in self._take(event.output):
                            yield self._frame(told)
                    elif isinstance(event, Finished):
                        last = await finish(self._status, event.usage.counts)
                        yield self._frame({"type": f"response.{self._status}", "response": last})
        except RequestError as failure:
            for told in self._builder.close("incomplete"):
                yield self._frame(told)
            error = ErrorObject("server_error", failure.message)
            yield self._frame({"type": "response.failed", "response": self._builder.object("failed", error=error)})

    def _take(self, delta: TextDelta) -> list[Event]:
        if self._parser is None:
            self._parser = self._parsers.parser(opens_in_reasoning=delta.opens_in_reasoning)
        parts = self._parser.push(delta.text) if delta.text else []
        if delta.finish_reason is not None:
            parts += self._parser.flush()
        # Log probabilities of held-back text go out with the next piece.
        self._held += delta.logprobs
        events: list[Event] = []
        for part in parts:
            events += self._builder.add(part, self._held)
            self._held = ()
        if delta.finish_reason is not None:
            self._status, last = self._builder.end(delta.finish_reason)
            events += last
        return events

    def _frame(self, event: Event) -> bytes:
        numbered = event | {"sequence_number": self._num_events}
        self._num_events += 1
        return event_frame(event["type"], JSON.encode(numbered))


def _new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"
