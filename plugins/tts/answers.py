"""The lists of voices and of models, in the forms that clients read."""

from __future__ import annotations

from typing import Literal, TypedDict


class VoiceRow(TypedDict):
    """A voice, or a further name of one."""

    id: str
    name: str
    model: str


class VoiceList(TypedDict):
    """The answer to ``GET /v1/audio/voices``; both lists are the same."""

    object: Literal["list"]
    voices: list[VoiceRow]
    data: list[VoiceRow]


class SpeechModelRow(TypedDict):
    """A model that speaks."""

    id: str
    name: str
    object: Literal["model"]


class SpeechModelList(TypedDict):
    """The answer to ``GET /v1/audio/models``; both lists are the same."""

    object: Literal["list"]
    models: list[SpeechModelRow]
    data: list[SpeechModelRow]
