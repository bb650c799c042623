"""Transcripts as OpenAI's clients read them, in the three forms that are JSON."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


class DurationUsage(TypedDict):
    """Whole seconds, begun ones included."""

    type: Literal["duration"]
    seconds: int


class TranscriptObject(TypedDict):
    """``json``."""

    text: str
    usage: DurationUsage
    logprobs: NotRequired[list[dict[str, Any]]]


class WordObject(TypedDict):
    """One word and its seconds."""

    word: str
    start: float
    end: float


class SegmentObject(TypedDict):
    """A piece of a transcript, as whisper made it; ``start`` and ``end`` are seconds."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class VerboseObject(TypedDict):
    """``verbose_json``."""

    task: str
    language: str
    duration: float
    text: str
    segments: NotRequired[list[SegmentObject]]
    words: NotRequired[list[WordObject]]
    usage: DurationUsage


class TurnObject(TypedDict):
    """What one speaker says at a time."""

    type: Literal["transcript.text.segment"]
    id: str
    start: float
    end: float
    text: str
    speaker: str | None


class DiarizedObject(TypedDict):
    """``diarized_json``."""

    task: str
    duration: float
    text: str
    segments: list[TurnObject]
    usage: DurationUsage


TRANSCRIPTS = (TranscriptObject, VerboseObject, DiarizedObject)
"""The request's ``response_format`` says which."""
