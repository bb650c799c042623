"""The options of a speech model's registry entry."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sixfold.core.source_ref import SourceRef


class SpeechOptions(BaseModel):
    """What an operator may set for any speech model."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    max_input_characters: int = Field(default=4096, ge=1)
    """Longest text of a request."""
    default_voice: str | None = None
    """Voice of requests that name none. None takes the model's first."""
    voice_aliases: dict[str, str] = Field(default_factory=dict)
    """Further names of voices, for clients that insist on theirs: ``{alloy: jm_kumo}``."""


class KokoroOptions(SpeechOptions):
    """What an operator may set for a model of ``tts/kokoro``."""

    g2p: Literal["dictionary", "espeak-ng"] = "dictionary"
    """Who turns text into phonemes: the dictionary of the default install (American English), or the program espeak-ng
    (GPL), which the operator installs and which is called as a program of its own."""
    espeak_voice: str = "en-us"
    """Language of espeak-ng."""
    num_lanes: int | None = Field(default=None, ge=1)
    """Sentences that are computed at the same time, each on one thread. None takes the model's number of threads."""


class TransformersSpeechOptions(SpeechOptions):
    """What an operator may set for a model of ``tts/transformers``."""

    max_batch_sentences: int = Field(default=8, ge=1)
    """Most sentences in one padded batch of VITS."""
    vocoder: SourceRef | None = None
    """Turns SpeechT5's spectrograms into sound, such as ``hf:microsoft/speecht5_hifigan``. None looks into the model's
    folder ``vocoder``."""
    speakers: dict[str, SourceRef] = {}
    """Voices of SpeechT5 beside those of ``.npz`` files in its folder: sources of ``.npy`` files, each with a speaker's
    x-vector."""
