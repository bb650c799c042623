"""What clients of ``WS /v1/realtime`` send: events of transcription sessions, in OpenAI's present and beta form."""

from __future__ import annotations

import binascii
from typing import Annotated, Literal, cast

import msgspec
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sixfold.core.errors import InvalidRequest

_STRICT = ConfigDict(extra="forbid", frozen=True)
Include = tuple[Literal["item.input_audio_transcription.logprobs"], ...]


class RealtimeQuery(BaseModel):
    """The query string of the socket."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: str | None = None
    """Name or alias of the model; a session update may name it instead."""
    intent: Literal["transcription"] | None = None
    """Only transcription sessions are served."""


class TurnDetection(BaseModel):
    """Server VAD: the server says when a turn ends."""

    model_config = _STRICT

    type: Literal["server_vad"] = "server_vad"
    threshold: Annotated[float, Field(ge=0.05, le=0.95)] = 0.5
    prefix_padding_ms: Annotated[int, Field(ge=0, le=5000)] = 300
    silence_duration_ms: Annotated[int, Field(ge=32, le=10_000)] = 500
    create_response: bool | None = None
    """Without effect, as in every transcription session: there are no responses."""
    interrupt_response: bool | None = None
    """Likewise."""
    idle_timeout_ms: None = None


class Transcription(BaseModel):
    """Which model writes down, and how."""

    model_config = _STRICT

    model: str | None = None
    language: str | None = None
    prompt: str = ""


class PcmFormat(BaseModel):
    """16-bit little-endian mono samples."""

    model_config = _STRICT

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Literal[16_000, 24_000] = 24_000


class AudioInput(BaseModel):
    """``session.audio.input``; what is left out stays as it is."""

    model_config = _STRICT

    format: PcmFormat | None = None
    noise_reduction: None = None
    transcription: Transcription | None = None
    turn_detection: TurnDetection | None = None


class Audio(BaseModel):
    """``session.audio``."""

    model_config = _STRICT

    input: AudioInput = AudioInput()


class Session(BaseModel):
    """The session of ``session.update``."""

    model_config = _STRICT

    type: Literal["transcription"]
    audio: Audio = Audio()
    include: Include | None = None


class BetaSession(BaseModel):
    """The session of ``transcription_session.update``."""

    model_config = _STRICT

    input_audio_format: Literal["pcm16"] = "pcm16"
    input_audio_transcription: Transcription | None = None
    input_audio_noise_reduction: None = None
    turn_detection: TurnDetection | None = None
    include: Include | None = None

    def as_session(self) -> Session:
        """The same in the present form."""
        given: dict[str, object] = {}
        if "input_audio_transcription" in self.model_fields_set:
            given["transcription"] = self.input_audio_transcription
        if "turn_detection" in self.model_fields_set:
            given["turn_detection"] = self.turn_detection
        return Session(type="transcription", audio=Audio(input=AudioInput.model_validate(given)), include=self.include)


class _Event(BaseModel):
    model_config = _STRICT

    event_id: str | None = None


class SessionUpdate(_Event):
    """Changes the session."""

    type: Literal["session.update"]
    session: Session


class BetaSessionUpdate(_Event):
    """Changes the session, in the beta form."""

    type: Literal["transcription_session.update"]
    session: BetaSession


class Append(_Event):
    """More audio."""

    type: Literal["input_audio_buffer.append"]
    audio: str

    def samples(self) -> bytes:
        """16-bit samples.

        Raises:
            InvalidRequest: It is not base64, or ends within a sample.
        """
        try:
            data = binascii.a2b_base64(self.audio, strict_mode=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest("The audio is not valid base64.", param="audio") from None
        if len(data) % 2:
            raise InvalidRequest("The audio holds half a sample: send 16-bit samples.", param="audio")
        return data


class Commit(_Event):
    """The turn is over."""

    type: Literal["input_audio_buffer.commit"]


class Clear(_Event):
    """Forget what was not committed."""

    type: Literal["input_audio_buffer.clear"]


ClientEvent = Annotated[SessionUpdate | BetaSessionUpdate | Append | Commit | Clear, Field(discriminator="type")]
_ADAPTER: TypeAdapter[ClientEvent] = TypeAdapter(ClientEvent)


def parse_event(text: str | bytes) -> ClientEvent:
    """Reads a client's message.

    Raises:
        InvalidRequest: Not JSON, an unknown event, or a field that is not served; ``param`` names it.
    """
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as failure:
        first = failure.errors(include_url=False, include_input=False)[0]
        names = [str(part) for part in first["loc"] if not (isinstance(part, str) and "." in part)]
        raise InvalidRequest(
            f"Invalid event: {'.'.join(names) or 'message'}: {first['msg']}.", param=".".join(names) or None
        ) from None


def event_id(message: str | bytes | None) -> str | None:
    """The id of the client's event that an error is about, if it has one."""
    try:
        event: object = msgspec.json.decode(message or b"null")
    except (ValueError, RecursionError):  # what decoders raise
        return None
    found = cast("dict[str, object]", event).get("event_id") if isinstance(event, dict) else None
    return found if isinstance(found, str) else None
