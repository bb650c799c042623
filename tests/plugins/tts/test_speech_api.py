"""The routes of speech synthesis, driven by a fake call."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from pydantic import ValidationError
from starlette.responses import Response, StreamingResponse

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import InvalidRequest, RequestError
from sixfold.core.family import Family
from sixfold.core.messages import Event, Finished, Increment, Usage
from sixfold.core.serving.api import Call
from sixfold.plugins.tts.api import SpeechAPI
from sixfold.plugins.tts.plugin import KOKORO
from sixfold.plugins.tts.schema import SpeechBody, SpeechInput, SpeechOutput

DETAILS: dict[str, str | int | float | bool] = {
    "voices": "anna,bert",
    "voice_aliases": "alloy=bert",
    "sample_rate_hz": 24_000,
    "max_input_characters": 20,
}
SOUNDS = (b"\x01\x00" * 100, b"\x02\x00" * 50)


@dataclass(frozen=True)
class FakeModel:
    name: str = "speak"
    family: Family = KOKORO
    info: ModelInfo = field(default_factory=lambda: ModelInfo(details=DETAILS))


class FakeRunning:
    async def __aiter__(self) -> AsyncIterator[Sequence[Event]]:
        for sound in SOUNDS:
            yield [Increment(request_id="r", output=SpeechOutput(pcm=sound, rate_hz=24_000))]
        counts = {"input_tokens": 7, "output_tokens": 3}
        yield [Finished(request_id="r", result=SpeechOutput(rate_hz=24_000), usage=Usage(counts=counts))]


class FakeCall:
    """Answers with two increments of PCM."""

    def __init__(self, **body: Any) -> None:
        self._body = {"model": "speak", "input": "Hello.", **body}
        self.inputs: list[SpeechInput] = []

    async def json(self, schema: type[Any]) -> Any:
        return schema.model_validate(self._body)

    def query(self, schema: type[Any]) -> Any:
        return schema.model_validate({})

    async def model(self, _name: str, operation: str) -> FakeModel:
        assert operation == "speech"
        return FakeModel()

    def models(self, operation: str) -> tuple[FakeModel, ...]:
        assert operation == "speech"
        return (FakeModel(),)

    async def start(self, _model: Any, input: Any) -> FakeRunning:
        self.inputs.append(input)
        return FakeRunning()

    def respond(self, body: Any) -> Response:
        return Response(json.dumps(body).encode())

    def stream_sse(self, chunks: AsyncIterator[bytes]) -> Response:
        return StreamingResponse(chunks, media_type="text/event-stream")

    def stream_bytes(
        self, chunks: AsyncIterator[bytes], *, media_type: str, headers: Mapping[str, str] = {}
    ) -> Response:
        return StreamingResponse(chunks, media_type=media_type, headers=dict(headers))


async def speak(call: FakeCall) -> StreamingResponse:
    response = await SpeechAPI().speak(cast("Call", call))
    assert isinstance(response, StreamingResponse)
    return response


async def chunks(response: StreamingResponse) -> list[bytes]:
    return [bytes(cast("bytes", chunk)) async for chunk in response.body_iterator]


async def refusal(**body: Any) -> RequestError:
    with pytest.raises(InvalidRequest) as caught:
        await speak(FakeCall(**body))
    return caught.value


async def test_sound_is_sent_as_it_is_made() -> None:
    response = await speak(FakeCall(response_format="pcm"))
    assert response.media_type == "audio/pcm"
    assert await chunks(response) == list(SOUNDS)


async def test_events_end_with_the_usage() -> None:
    text = b"".join(await chunks(await speak(FakeCall(response_format="pcm", stream_format="sse")))).decode()
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert [base64.b64decode(event["audio"]) for event in events[:-1]] == list(SOUNDS)
    usage = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
    assert events[-1] == {"type": "speech.audio.done", "usage": usage}


@pytest.mark.parametrize("voice", ["bert", {"id": "bert"}])
async def test_a_voice_is_a_name_or_an_object(voice: Any) -> None:
    call = FakeCall(voice=voice, speed=2, seed=4)
    await speak(call)
    assert call.inputs == [SpeechInput(text="Hello.", voice="bert", speed=2.0, seed=4)]


async def test_what_the_model_cannot_do_is_refused_before_it_is_queued() -> None:
    assert (await refusal(input="")).param == "input"
    assert (await refusal(input=" \n")).param == "input"
    too_long = await refusal(input="x" * 21)
    assert (too_long.param, too_long.code) == ("input", "context_length_exceeded")
    unknown = await refusal(voice="carl")
    assert unknown.param == "voice"
    assert "anna, bert, alloy" in unknown.message
    assert (await refusal(voice="anna+carl")).param == "voice"
    assert (await refusal(instructions="Sing.")).param == "instructions"


async def test_empty_instructions_ask_for_nothing() -> None:
    await speak(FakeCall(instructions=""))


@pytest.mark.parametrize(
    "change", [{"speed": 0.2}, {"speed": 4.1}, {"speed": float("nan")}, {"response_format": "midi"}, {"extra": 1}]
)
def test_a_wrong_field_fails_validation(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SpeechBody.model_validate({"model": "speak", "input": "Hello.", **change})


async def test_voices_and_models_have_both_names_that_clients_read() -> None:
    voices = json.loads(bytes((await SpeechAPI().voices(cast("Call", FakeCall()))).body))
    assert [voice["id"] for voice in voices["voices"]] == ["anna", "bert", "alloy"]
    assert voices["data"] == voices["voices"]
    models = json.loads(bytes((await SpeechAPI().models(cast("Call", FakeCall()))).body))
    assert models["models"] == models["data"] == [{"id": "speak", "name": "speak", "object": "model"}]
