"""The forms of ``/v1/audio/transcriptions`` and ``/v1/audio/translations``, and what in them is refused."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from sixfold.core.errors import InvalidRequest
from sixfold.core.serving.api import Upload
from sixfold.plugins.asr.languages import language_code
from sixfold.plugins.asr.schema import KnownSpeaker, TranscribeInput, VadSettings

ResponseFormat = Literal["json", "text", "srt", "vtt", "verbose_json", "diarized_json"]
_STREAMED: tuple[ResponseFormat, ...] = ("json", "text", "diarized_json")
_MAX_SPEAKERS = 4  # as in OpenAI's specification

_FROZEN = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ServerVad(BaseModel):
    """How the server cuts the audio where nobody speaks."""

    model_config = _FROZEN

    type: Literal["server_vad"]
    threshold: Annotated[float, Field(ge=0.05, le=0.95)] = 0.5
    """Speech begins at this probability."""
    prefix_padding_ms: Annotated[int, Field(ge=0, le=2000)] = 300
    """Audio that is kept before speech."""
    silence_duration_ms: Annotated[int, Field(ge=32, le=10_000)] = 200
    """A pause of this length ends a stretch of speech."""


class TranslationForm(BaseModel):
    """The fields of ``POST /v1/audio/translations``."""

    model_config = _FROZEN

    file: Upload
    """Audio or video in any container that FFmpeg reads."""
    model: str
    """Name or alias of the model."""
    prompt: str = ""
    """Text in the style of the audio, put before every window."""
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = "json"
    """Form of the answer."""
    temperature: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0 begins at 0 and rises where Whisper's checks fail."""

    def request_input(self) -> TranscribeInput:
        """The request as it goes to the model."""
        return TranscribeInput(audio=self.file.data, task="translate", prompt=self.prompt, temperature=self.temperature)


class TranscriptionForm(BaseModel):
    """The fields of ``POST /v1/audio/transcriptions``."""

    model_config = _FROZEN

    file: Upload
    """Audio or video in any container that FFmpeg reads."""
    model: str
    """Name or alias of the model."""
    language: str | None = None
    """ISO 639-1 code; without it the language is detected."""
    prompt: str = ""
    """Text in the style of the audio, put before every window."""
    response_format: ResponseFormat = "json"
    """Form of the answer."""
    temperature: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0 begins at 0 and rises where Whisper's checks fail."""
    include: tuple[Literal["logprobs"], ...] = ()
    """``logprobs``: the log probability of each token, with ``json`` only."""
    timestamp_granularities: tuple[Literal["word", "segment"], ...] = ()
    """Which times ``verbose_json`` holds; without it segments."""
    stream: bool = False
    """Sends text as windows are done, as server-sent events."""
    chunking_strategy: Literal["auto"] | ServerVad | None = None
    """How silence is found; ``auto`` and nothing are the same."""
    known_speaker_names: tuple[str, ...] = ()
    """Names of speakers whose voices are in ``known_speaker_references``."""
    known_speaker_references: tuple[str, ...] = ()
    """``data:`` URLs with 2 to 10 seconds of each named speaker."""

    def check(self) -> None:
        """Refuses combinations that no model honours.

        Raises:
            InvalidRequest: With the ``param``.
        """
        format_ = self.response_format
        if self.stream and format_ not in _STREAMED:
            _refuse(f"response_format {format_!r} can't be streamed. Use one of {', '.join(_STREAMED)}.", "stream")
        if self.timestamp_granularities and format_ != "verbose_json":
            _refuse("Set response_format to 'verbose_json' for times of words and segments.", "timestamp_granularities")
        if self.include and format_ != "json":
            _refuse("Log probabilities come with response_format 'json' only.", "include")
        if len(self.known_speaker_names) != len(self.known_speaker_references):
            _refuse("Send as many known_speaker_references as known_speaker_names.", "known_speaker_references")
        if self.known_speaker_names and format_ != "diarized_json":
            _refuse("Known speakers need response_format 'diarized_json'.", "known_speaker_names")
        if len(self.known_speaker_names) > _MAX_SPEAKERS:
            _refuse(f"At most {_MAX_SPEAKERS} speakers can be named.", "known_speaker_names")
        if len(set(self.known_speaker_names)) != len(self.known_speaker_names):
            _refuse("The names must differ.", "known_speaker_names")

    def request_input(self, known_speakers: tuple[KnownSpeaker, ...]) -> TranscribeInput:
        """The request as it goes to the model.

        Raises:
            InvalidRequest: An unknown language.
        """
        code = None
        if self.language:
            code = language_code(self.language)
            if code is None:
                _refuse(f"Unknown language {self.language[:40]!r}. Send an ISO 639-1 code such as 'en'.", "language")
        chunking = self.chunking_strategy
        vad = VadSettings()
        if isinstance(chunking, ServerVad):
            vad = VadSettings(
                threshold=chunking.threshold,
                prefix_ms=chunking.prefix_padding_ms,
                silence_ms=chunking.silence_duration_ms,
            )
        return TranscribeInput(
            audio=self.file.data,
            language=code,
            prompt=self.prompt,
            temperature=self.temperature,
            wants_words="word" in self.timestamp_granularities,
            wants_logprobs=bool(self.include),
            diarizes=self.response_format == "diarized_json",
            known_speakers=known_speakers,
            vad=vad,
            streams=self.stream,
        )


def _refuse(message: str, param: str) -> None:
    raise InvalidRequest(message, param=param)
