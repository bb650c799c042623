"""A live session answers its client's events; the model is a fake that speaks of loudness, a loud sample being speech."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from pydantic import BaseModel

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import ModelNotFound
from sixfold.core.family import Family
from sixfold.core.messages import Event, Finished
from sixfold.core.serving.api import SocketCall
from sixfold.plugins.asr.plugin import FASTER_WHISPER
from sixfold.plugins.asr.realtime import serve_realtime
from sixfold.plugins.asr.schema import Segment, SpeechProbabilities, TranscribeInput, Transcript, VadInput

RATE_HZ = 24_000
SPEECH = np.full(RATE_HZ, 8000, dtype=np.int16).tobytes()
SILENCE = bytes(2 * RATE_HZ)


@dataclass(frozen=True)
class FakeModel:
    name: str = "hear"
    family: Family = FASTER_WHISPER
    info: ModelInfo = field(default_factory=ModelInfo)
    variant: str | None = None


class FakeRunning:
    def __init__(self, events: Sequence[Event]) -> None:
        self._events = events

    async def __aiter__(self) -> AsyncIterator[Sequence[Event]]:
        yield self._events


class FakeSocket:
    """A client that sends its messages one after the other, and leaves when an event of the type ``until`` has come."""

    request_id = "r"

    def __init__(self, *messages: object, until: str, query: Mapping[str, str] = MappingProxyType({})) -> None:
        self._query = query
        self._messages = iter([json.dumps(one) for one in messages])
        self._until = until
        self._is_over = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self.heard: list[TranscribeInput] = []

    def query(self, schema: type[BaseModel]) -> BaseModel:
        return schema.model_validate(self._query)

    async def model(self, name: str, operation: str) -> FakeModel:
        if name != "hear":
            raise ModelNotFound(f"No model {name!r} for {operation}.")
        return FakeModel()

    async def receive(self) -> str | None:
        await asyncio.sleep(0)  # as a socket does, lets the session's tasks run
        message = next(self._messages, None)
        if message is None:
            await self._is_over.wait()
        return message

    async def send(self, data: str) -> None:
        self.sent.append(json.loads(data))
        if self.sent[-1]["type"] == self._until:
            self._is_over.set()

    async def run(self, _model: FakeModel, input: VadInput) -> Finished[Any]:
        frames = np.frombuffer(input.pcm, dtype=np.int16).reshape(-1, input.pcm_hz * 32 // 1000)
        values = tuple(float(loud) for loud in np.abs(frames).max(axis=1) > 0)
        return Finished(request_id="r", result=SpeechProbabilities(values=values, state=input.state))

    async def start(self, _model: FakeModel, input: TranscribeInput) -> FakeRunning:
        self.heard.append(input)
        segment = Segment(text="Hello.", start_s=0.0, end_s=1.0)
        return FakeRunning(
            [Finished(request_id="r", result=Transcript(language="en", duration_s=1.0, segments=(segment,)))]
        )

    async def serve(self) -> list[str]:
        """The types of what the client got."""
        await asyncio.wait_for(serve_realtime(cast("SocketCall", self)), timeout=10)
        return [event["type"] for event in self.sent]


def append(sound: bytes) -> dict[str, str]:
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(sound).decode()}


def update(**audio_input: object) -> dict[str, object]:
    return {"type": "session.update", "session": {"type": "transcription", "audio": {"input": audio_input}}}


NAMES_THE_MODEL = {"transcription": {"model": "hear"}}
COMPLETED = "conversation.item.input_audio_transcription.completed"


async def test_audio_that_comes_before_the_model_is_named_waits_for_it() -> None:
    socket = FakeSocket(append(SPEECH), append(SILENCE), update(**NAMES_THE_MODEL), until=COMPLETED)
    got = await socket.serve()
    assert "error" not in got
    assert got.index("session.updated") < got.index("input_audio_buffer.speech_started") < got.index(COMPLETED)
    assert SPEECH in socket.heard[0].audio


async def test_what_waits_takes_the_turn_detection_that_comes_with_the_model() -> None:
    commit = {"type": "input_audio_buffer.commit"}
    socket = FakeSocket(
        append(SPEECH), append(SILENCE), update(turn_detection=None, **NAMES_THE_MODEL), commit, until=COMPLETED
    )
    got = await socket.serve()
    assert "error" not in got
    assert "input_audio_buffer.speech_started" not in got
    assert socket.heard[0].audio == SPEECH + SILENCE


async def test_a_wrong_name_of_a_model_loses_no_audio() -> None:
    wrong = update(transcription={"model": "other"})
    socket = FakeSocket(append(SPEECH), wrong, append(SILENCE), update(**NAMES_THE_MODEL), until=COMPLETED)
    got = await socket.serve()
    assert got.count("error") == 1
    assert SPEECH in socket.heard[0].audio


async def test_half_a_minute_is_kept_for_a_model_that_nobody_names() -> None:
    socket = FakeSocket(*[append(SPEECH)] * 32, until="error")
    await socket.serve()
    error = socket.sent[-1]["error"]
    assert error["param"] == "session.audio.input.transcription.model"
    assert "session.update" in error["message"]


async def test_a_commit_without_a_model_is_refused_and_takes_nothing() -> None:
    commit = {"type": "input_audio_buffer.commit", "event_id": "mine"}
    socket = FakeSocket(append(SPEECH), commit, update(turn_detection=None, **NAMES_THE_MODEL), commit, until=COMPLETED)
    got = await socket.serve()
    assert got.count("error") == 1
    assert socket.sent[got.index("error")]["error"]["event_id"] == "mine"
    assert socket.heard[0].audio == SPEECH


async def test_a_session_that_hears_keeps_its_turn_detection_while_audio_waits() -> None:
    socket = FakeSocket(append(SPEECH), update(turn_detection=None), until="error", query={"model": "hear"})
    await socket.serve()
    assert "Commit or clear" in socket.sent[-1]["error"]["message"]
