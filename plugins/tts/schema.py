"""What clients send to ``/v1/audio/speech``, and what crosses the process border for it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

AudioFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]


class SpeechInput(msgspec.Struct, frozen=True, kw_only=True):
    """The input of one synthesis.

    Attributes:
        text: As the client wrote it.
        voice: One of the model's voices, or several joined by ``+``; "" for the model's own choice.
        speed: 1 is the voice's own pace, 2 twice as fast.
        seed: Of models that draw random numbers; each sentence gets a seed made from it and its place.
    """

    text: str
    voice: str = ""
    speed: float = 1.0
    seed: int = 0


class SpeechOutput(msgspec.Struct, frozen=True, kw_only=True):
    """Sound that follows all that came before it, or an empty result at the end.

    Attributes:
        pcm: Little-endian 16-bit samples of one channel.
        rate_hz: Samples a second; the same in all outputs of a model.
    """

    pcm: bytes = b""
    rate_hz: int


class VoiceObject(BaseModel):
    """OpenAI's form of a custom voice."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    id: Annotated[str, StringConstraints(min_length=1)]
    """The voice's name."""


class SpeechBody(BaseModel):
    """The JSON body of ``POST /v1/audio/speech``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str
    """Name or alias of the model."""
    input: str
    """The text to speak."""
    voice: str | VoiceObject | None = None
    """A voice's name, several joined by ``+`` for their mean, or ``{"id": name}``; without it the model's own choice."""
    response_format: AudioFormat = "mp3"
    """``pcm`` is 24 kHz, 16 bit, little-endian, one channel, without a header."""
    speed: Annotated[float, Field(ge=0.25, le=4.0, allow_inf_nan=False)] = 1.0
    """1 is the voice's own pace."""
    stream_format: Literal["audio", "sse"] = "audio"
    """``audio`` is the bare sound, sent while it is made; ``sse`` are OpenAI's events ``speech.audio.delta`` and ``.done``."""
    instructions: str | None = None
    """How to speak; a model that cannot follow instructions refuses them."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """For models that draw random numbers: the same seed gives the same sound."""

    @property
    def voice_name(self) -> str:
        """The wanted voice, "" for the model's choice."""
        return self.voice.id if isinstance(self.voice, VoiceObject) else self.voice or ""
