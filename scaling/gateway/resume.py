"""Goes on with a stream whose replica died: the same request again, elsewhere, without what the client has already.

Only for answers that are the same every time: greedy or seeded ones of a single choice. The other replica's text is compared
with what the client got, character by character, before anything new is sent: an answer that differs ends the stream loudly.
Text is compared, not tokens, so it works for chats, reasoning and tool calls, and for any server. The price is that the beginning
is computed once more, which the client sees as a pause.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import msgspec

from sixfold.scaling.gateway.inbound import Inbound

_PATHS = frozenset(("/v1/completions", "/v1/chat/completions"))
_DATA = b"data: "
_DONE = b"data: [DONE]"

Event = dict[str, Any]


class Diverged(Exception):
    """The other replica's answer is not the one that the client has the beginning of."""


class _Sampling(msgspec.Struct, frozen=True):
    temperature: float | None = None
    seed: int | None = None
    n: int | None = None
    best_of: int | None = None
    use_beam_search: bool | None = None


def is_resumable(inbound: Inbound) -> bool:
    """Whether the request's stream is the same every time, as far as the request can say."""
    if not inbound.streams or inbound.path not in _PATHS:
        return False
    try:
        sampling = msgspec.json.decode(inbound.body, type=_Sampling)
    except (ValueError, RecursionError):  # the replica will say what is wrong
        return False
    is_single = (sampling.n or 1) == 1 and (sampling.best_of or 1) == 1 and not sampling.use_beam_search
    return is_single and (sampling.temperature == 0 or sampling.seed is not None)


class StreamRecord:
    """What a client has of one stream. Fed with whole events, in order, as they are passed on."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.head: Mapping[str, Any] = {}
        self.is_done = False

    def feed(self, frames: bytes) -> None:
        """Takes note of events that are sent."""
        for frame in _split(frames):
            if frame.startswith(_DONE):
                self.is_done = True
            event = _decode(frame)
            if event is None:
                continue
            if not self.head:
                self.head = {name: event[name] for name in ("id", "created") if name in event}
            for channel, _owner, _key, text in _texts(event):
                self.texts[channel] = self.texts.get(channel, "") + text


class Replay:
    """Takes from a second stream what the client has not got, under the head of the first one.

    Args:
        record: What the client has; goes on to be fed with what this gives.
    """

    def __init__(self, record: StreamRecord) -> None:
        self._record = record
        self._left = dict(record.texts)

    def cut(self, frames: bytes) -> bytes:
        """The events, or the parts of events, that are new.

        Raises:
            Diverged: The beginning differs, or ends before what the client has.
        """
        new = b"".join(self._new(frame) for frame in _split(frames))
        self._record.feed(new)
        return new

    def _new(self, frame: bytes) -> bytes:
        event = _decode(frame)
        if event is None:
            if frame.startswith(_DONE) and any(self._left.values()):
                raise Diverged
            return frame if frame.startswith(_DONE) else b""
        is_news = not any(self._left.values())
        for channel, owner, key, text in _texts(event):
            left = self._left.get(channel, "")
            same = min(len(left), len(text))
            if left[:same] != text[:same]:
                raise Diverged
            self._left[channel] = left[same:]
            owner[key] = text[same:]
            is_news = is_news or same < len(text)
        if _finishes(event) and any(self._left.values()):
            raise Diverged
        return _DATA + msgspec.json.encode({**event, **self._record.head}) + b"\n\n" if is_news else b""


def _split(frames: bytes) -> Iterator[bytes]:
    for frame in frames.replace(b"\r\n", b"\n").split(b"\n\n"):
        if event := frame.strip(b"\n"):  # of three line ends, the third begins what comes next
            yield event + b"\n\n"


def _decode(frame: bytes) -> Event | None:
    if not frame.startswith(_DATA + b"{"):
        return None
    try:
        return cast(Event, msgspec.json.decode(frame[len(_DATA) :]))
    except (ValueError, RecursionError):  # what decoders raise
        return None


def _objects(given: object) -> Iterator[Event]:
    """The objects of a list; other servers' events need not have the shape of ours."""
    for each in cast("list[object]", given) if isinstance(given, list) else ():
        if isinstance(each, dict):
            yield cast(Event, each)


def _object(given: object) -> Event:
    return cast(Event, given) if isinstance(given, dict) else {}


def _texts(event: Event) -> Iterator[tuple[str, Event, str, str]]:
    """Each piece of text of an event: what it belongs to, and where it stands."""
    for choice in _objects(event.get("choices")):
        if isinstance(choice.get("text"), str):
            yield "text", choice, "text", choice["text"]
        delta = _object(choice.get("delta"))
        for key in ("content", "reasoning_content", "reasoning"):
            if isinstance(delta.get(key), str):
                yield key, delta, key, delta[key]
        for call in _objects(delta.get("tool_calls")):
            function = _object(call.get("function"))
            for key in ("name", "arguments"):
                if isinstance(function.get(key), str):
                    yield f"{key} of call {call.get('index', 0)}", function, key, function[key]


def _finishes(event: Event) -> bool:
    return any(choice.get("finish_reason") is not None for choice in _objects(event.get("choices")))
