"""A call that parses bodies as the server does and answers with given events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, cast

import msgspec
from pydantic import BaseModel
from starlette.responses import Response

from sixfold.core.batching.model import ModelInfo
from sixfold.core.family import Family
from sixfold.core.messages import Event, Finished, Increment, Usage
from sixfold.core.serving.api import Call, Fetched
from sixfold.core.serving.body import parse_json
from sixfold.core.serving.fetch import Fetcher
from sixfold.plugins.llm.api import LlmAPI
from sixfold.plugins.llm.generation import Choice, Generation, TextDelta, TokenLogprob, TopToken
from sixfold.plugins.llm.plugin import FAMILY

USAGE = Usage(counts={"prompt_tokens": 5, "completion_tokens": 3, "cached_tokens": 0})
LOGPROB = TokenLogprob(
    chosen=TopToken("é", "é".encode(), -0.5), top=(TopToken("é", "é".encode(), -0.5), TopToken("e", b"e", -1.5))
)
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


@dataclass(frozen=True)
class FakeModel:
    name: str = "m"
    family: Family = FAMILY
    info: ModelInfo = field(default_factory=ModelInfo)
    variant: str | None = None


class FakeRunning:
    def __init__(self, events: Sequence[Sequence[Event]]) -> None:
        self._events = events

    async def __aiter__(self) -> AsyncIterator[Sequence[Event]]:
        for events in self._events:
            yield events


class FakeCall:
    """Parses bodies as the server does and answers with given events."""

    request_id = "r"
    headers: Mapping[str, str] = {}

    def __init__(
        self,
        body: object,
        events: Sequence[Sequence[Event]] = (),
        details: Mapping[str, str | int | float | bool] = MappingProxyType({}),
    ) -> None:
        self._info = ModelInfo(details=details)
        self._body = json.dumps(body).encode()
        self._events = events
        self.input: Any = None
        self.operation = ""
        self.frames: list[bytes] = []
        self.chunks: AsyncIterator[bytes] | None = None

    async def json(self, schema: type[BaseModel]) -> Any:
        return parse_json(self._body, schema)

    async def model(self, name: str, operation: str) -> FakeModel:
        self.operation = operation
        return FakeModel(name, info=self._info)

    async def run(self, model: object, input: msgspec.Struct) -> Finished[Any]:
        self.input = input
        last = self._events[-1][-1]
        assert isinstance(last, Finished)
        return last

    async def fetch(self, url: str, *, max_bytes: int) -> Fetched:
        """``data:`` URLs only, as where the configuration allows nothing else."""
        return await Fetcher((), timeout_s=1).fetch(url, max_bytes=max_bytes)

    async def start(self, model: object, input: msgspec.Struct) -> FakeRunning:
        self.input = input
        return FakeRunning(self._events)

    def respond(self, body: Any, *, media_type: str = "application/json") -> Response:
        return Response(msgspec.json.encode(body), media_type=media_type)

    def stream_sse(self, chunks: AsyncIterator[bytes]) -> Response:
        self.chunks = chunks
        return Response()

    async def read_frames(self) -> list[Any]:
        assert self.chunks is not None
        self.frames = [frame async for frame in self.chunks]
        assert self.frames[-1] == b"data: [DONE]\n\n"
        for frame in self.frames:
            assert frame.startswith(b"data: ")
            assert frame.endswith(b"\n\n")
            assert frame.count(b"\n") == 2
        return [json.loads(frame[6:]) for frame in self.frames[:-1]]


def finished(*texts: str, logprobs: tuple[TokenLogprob, ...] = ()) -> Finished[Any]:
    choices = tuple(Choice(text=text, finish_reason="stop", logprobs=logprobs) for text in texts)
    return Finished(request_id="r", result=Generation(choices=choices), usage=USAGE)


def delta(text: str, choice: int = 0, **more: Any) -> Increment[Any]:
    return Increment(request_id="r", output=TextDelta(choice=choice, text=text, num_tokens=1, **more))


STREAM: list[list[Event]] = [
    [delta("Hel"), delta("A", choice=1)],
    [delta('lo\n"🙂'), delta("", choice=1, finish_reason="length")],
    [delta("!", finish_reason="stop"), finished("x", "y")],
]


async def chat(
    body: dict[str, Any],
    events: Sequence[Sequence[Event]],
    details: Mapping[str, str | int | float | bool] = MappingProxyType({}),
) -> tuple[FakeCall, Any]:
    call = FakeCall(body, events, details)
    response = await LlmAPI().chat(cast(Call, call))
    return call, (await call.read_frames() if body.get("stream") else json.loads(bytes(response.body)))


async def complete(body: dict[str, Any], events: Sequence[Sequence[Event]]) -> tuple[FakeCall, Any]:
    call = FakeCall(body, events)
    response = await LlmAPI().complete(cast(Call, call))
    return call, (await call.read_frames() if body.get("stream") else json.loads(bytes(response.body)))
