"""What crosses the process border for speech recognition: inputs of the families, and what they give back."""

from __future__ import annotations

from typing import Literal

import msgspec

Task = Literal["transcribe", "translate"]

SAMPLE_RATE_HZ = 16_000
"""The rate at which every model here hears."""


class VadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How speech is told from silence.

    Attributes:
        threshold: Speech begins at this probability; it ends 0.15 below.
        silence_ms: A pause of this length ends a stretch of speech.
        prefix_ms: Audio that is kept before each stretch (and after it).
    """

    threshold: float = 0.5
    silence_ms: int = 160
    prefix_ms: int = 400


class KnownSpeaker(msgspec.Struct, frozen=True, kw_only=True):
    """A speaker by name, with a few seconds of their voice in any container."""

    name: str
    audio: bytes


class TranscribeInput(msgspec.Struct, frozen=True, kw_only=True, tag="transcribe"):
    """One file or one turn of a live session.

    Attributes:
        audio: The file's bytes, in any container that FFmpeg reads.
        pcm_hz: Set if ``audio`` is bare 16-bit little-endian mono samples of this rate.
        task: Translation is always into English.
        language: ISO 639-1 code; None detects it from the first window.
        prompt: Put before every window as if it were the text so far.
        temperature: 0 begins at 0 and rises where a window fails Whisper's checks; above 0 is used as it is.
        wants_words: Compute the times of words.
        wants_logprobs: Compute the log probability of each token.
        diarizes: Say who speaks.
        known_speakers: Names and reference recordings of speakers.
        vad: How windows are cut.
        streams: Send each window as it is done.
    """

    audio: bytes
    pcm_hz: int | None = None
    task: Task = "transcribe"
    language: str | None = None
    prompt: str = ""
    temperature: float = 0.0
    wants_words: bool = False
    wants_logprobs: bool = False
    diarizes: bool = False
    known_speakers: tuple[KnownSpeaker, ...] = ()
    vad: VadSettings = VadSettings()
    streams: bool = False


class VadState(msgspec.Struct, frozen=True, kw_only=True):
    """What the detector remembers between the chunks of a live stream; empty at its begin.

    Attributes:
        hidden: Float32 bytes of the recurrent state, [2, 128].
        context: Float32 bytes of the last 64 samples.
        tail: 16-bit bytes of the last samples before they were resampled.
    """

    hidden: bytes = b""
    context: bytes = b""
    tail: bytes = b""


class VadInput(msgspec.Struct, frozen=True, kw_only=True, tag="vad"):
    """A chunk of a live stream.

    Attributes:
        pcm: 16-bit little-endian mono samples, whole frames of 32 ms.
        pcm_hz: Their rate, 16,000 or 24,000.
        state: Of the chunk before.
    """

    pcm: bytes
    pcm_hz: int = SAMPLE_RATE_HZ
    state: VadState = VadState()


AsrInput = TranscribeInput | VadInput


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """A word with its times in seconds of the file; the text keeps its leading space."""

    text: str
    start_s: float
    end_s: float
    probability: float


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A text token and the natural logarithm of its probability."""

    token: str
    token_bytes: bytes
    logprob: float


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """A phrase with its times in seconds of the file; the fields of Whisper's own segments.

    Attributes:
        speaker: Set by diarization.
    """

    text: str
    start_s: float
    end_s: float
    seek_frames: int = 0
    token_ids: tuple[int, ...] = ()
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 1.0
    no_speech_prob: float = 0.0
    words: tuple[Word, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    speaker: str | None = None


class WindowDone(msgspec.Struct, frozen=True, kw_only=True, tag="window"):
    """An increment: the text of one window. Windows may be done out of order; ``index`` counts from 0 without gaps."""

    index: int
    segments: tuple[Segment, ...]


class Transcript(msgspec.Struct, frozen=True, kw_only=True, tag="transcript"):
    """The result of a `TranscribeInput`.

    Attributes:
        language: Given or detected; None if there was no speech to detect it from.
        duration_s: Of the whole audio, silence included.
        segments: In order of time.
    """

    language: str | None
    duration_s: float
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        """All that was said."""
        return "".join(segment.text for segment in self.segments).strip()


class SpeechProbabilities(msgspec.Struct, frozen=True, kw_only=True, tag="speech"):
    """The result of a `VadInput`: one probability for every 512 samples, and the state for the next chunk."""

    values: tuple[float, ...]
    state: VadState


AsrOutput = WindowDone | Transcript | SpeechProbabilities
