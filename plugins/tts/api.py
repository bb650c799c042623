"""The HTTP face of speech synthesis: OpenAI's ``/v1/audio/speech``, and the lists that Open WebUI asks for."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import msgspec
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from sixfold.core.errors import ContextLengthExceeded, InvalidRequest
from sixfold.core.messages import Finished, Increment
from sixfold.core.serving.api import Call, ModalityAPI, Panel, Route, Running, ServedModel
from sixfold.core.serving.sse import event_frame
from sixfold.plugins.tts.answers import SpeechModelList, VoiceList
from sixfold.plugins.tts.audio import MEDIA_TYPES, Encoder, make_encoder, media_type
from sixfold.plugins.tts.schema import SpeechBody, SpeechInput, SpeechOutput
from sixfold.plugins.tts.voices import resolve_voices

_OPERATION = "speech"


class VoicesQuery(BaseModel):
    """The query string of ``GET /v1/audio/voices``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    """Only the voices of this model."""


class SpeechAPI(ModalityAPI):
    """Answers ``POST /v1/audio/speech``, ``GET /v1/audio/voices`` and ``GET /v1/audio/models``."""

    modality = "tts"

    def routes(self) -> Sequence[Route]:
        """The three routes."""
        return (
            Route(
                path="/v1/audio/speech",
                endpoint=self.speak,
                body=SpeechBody,
                media_types=(*MEDIA_TYPES, "text/event-stream"),
                in_batches=True,
            ),
            Route(
                path="/v1/audio/voices", endpoint=self.voices, method="GET", query_params=VoicesQuery, answer=VoiceList
            ),
            Route(path="/v1/audio/models", endpoint=self.models, method="GET", answer=SpeechModelList),
        )

    def panels(self) -> Sequence[Panel]:
        """The tab Speak."""
        script = Path(__file__).parent / "playground" / "speak.js"
        return (Panel(title="Speak", operation="speech", script=script, order=40),)

    async def speak(self, call: Call) -> Response:
        """Speaks a text; the sound is sent sentence by sentence while it is made.

        Raises:
            RequestError: The body is wrong, the model does not speak, or the request failed before its first sound.
        """
        body = await call.json(SpeechBody)
        model = await call.model(body.model, _OPERATION)
        running = await call.start(model, checked_input(body, model))
        rate_hz = model.info.details["sample_rate_hz"]
        assert isinstance(rate_hz, int)
        encoder = make_encoder(body.response_format, rate_hz)
        if body.stream_format == "sse":
            return call.stream_sse(sse_events(running, encoder))
        return call.stream_bytes(encoded(running, encoder), media_type=media_type(body.response_format))

    async def voices(self, call: Call) -> Response:
        """The voices of all speech models, or of one."""
        wanted = call.query(VoicesQuery).model
        models = (await call.model(wanted, _OPERATION),) if wanted is not None else call.models(_OPERATION)
        found: dict[str, dict[str, str]] = {}
        for model in models:
            names, aliases = voice_names(model)
            for voice in (*names, *aliases):
                found.setdefault(voice, {"id": voice, "name": voice, "model": model.name})
        return call.respond({"object": "list", "voices": list(found.values()), "data": list(found.values())})

    async def models(self, call: Call) -> Response:
        """The speech models, in the two forms that clients read."""
        rows = [{"id": model.name, "name": model.name, "object": "model"} for model in call.models(_OPERATION)]
        return call.respond({"object": "list", "models": rows, "data": rows})


def checked_input(body: SpeechBody, model: ServedModel) -> SpeechInput:
    """The request for the model.

    Raises:
        InvalidRequest: What the model's own facts already rule out, before anything is queued.
    """
    limit = model.info.details["max_input_characters"]
    assert isinstance(limit, int)
    if len(body.input) > limit:
        raise ContextLengthExceeded(
            f"input has {len(body.input)} characters; this model takes {limit}. Send the text in parts.", param="input"
        )
    if not body.input.strip():
        raise InvalidRequest("input is empty: send some words.", param="input")
    if body.instructions:
        raise InvalidRequest(
            f"instructions: {model.name} cannot follow instructions. Leave them out.", param="instructions"
        )
    if body.voice_name:
        resolve_voices(body.voice_name, *voice_names(model))
    return SpeechInput(text=body.input, voice=body.voice_name, speed=body.speed, seed=body.seed)


def voice_names(model: ServedModel) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """The model's voices and the further names for them, from its own facts."""
    details = model.info.details
    pairs = (pair.partition("=") for pair in str(details["voice_aliases"]).split(",") if pair)
    return tuple(str(details["voices"]).split(",")), {alias: name for alias, _, name in pairs}


async def encoded(running: Running, encoder: Encoder) -> AsyncIterator[bytes]:
    """The bytes of an answer as they become ready."""
    async for events in running:
        for event in events:
            if isinstance(event, Increment) and isinstance(event.output, SpeechOutput):
                data = await asyncio.to_thread(encoder.feed, event.output.pcm)
                if data:
                    yield data
    data = await asyncio.to_thread(encoder.close)
    if data:
        yield data


async def sse_events(running: Running, encoder: Encoder) -> AsyncIterator[bytes]:
    """OpenAI's events: ``speech.audio.delta`` with base64, last ``speech.audio.done`` with the usage."""
    usage: Mapping[str, int] = {}
    async for events in running:
        for event in events:
            if isinstance(event, Increment) and isinstance(event.output, SpeechOutput):
                data = await asyncio.to_thread(encoder.feed, event.output.pcm)
                if data:
                    yield _delta(data)
            elif isinstance(event, Finished):
                usage = event.usage.counts
    data = await asyncio.to_thread(encoder.close)
    if data:
        yield _delta(data)
    total = {**usage, "total_tokens": sum(usage.values())}
    yield event_frame("speech.audio.done", msgspec.json.encode({"type": "speech.audio.done", "usage": total}))


def _delta(data: bytes) -> bytes:
    event = {"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()}
    return event_frame("speech.audio.delta", msgspec.json.encode(event))
