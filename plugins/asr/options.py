"""The options of speech recognition models in the registry."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from sixfold.core.source_ref import SourceRef


class DiarizationOptions(BaseModel):
    """Which network tells voices apart, and how strictly."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    source: SourceRef
    """Where the speaker network comes from, as a model's ``source``: a file or folder with Resemblyzer's ``pretrained.pt``."""
    max_distance: Annotated[float, Field(gt=0, lt=2)] = 0.32
    """Voices nearer than this cosine distance are one speaker."""


class AsrOptions(BaseModel):
    """What an operator may set for every speech recognition model."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    max_audio_s: Annotated[float, Field(gt=0)] = 4 * 3600.0
    """Longest audio of one request, in seconds of sound; more is refused while it is decoded."""
    diarization: DiarizationOptions | None = None
    """Set it to offer ``diarized_json``."""


class WhisperOptions(AsrOptions):
    """What Whisper models share."""

    beam_size: Annotated[int, Field(ge=1, le=20)] = 5
    """Beams at temperature 0."""
    best_of: Annotated[int, Field(ge=1, le=20)] = 5
    """Samples at temperatures above 0; the likeliest is taken."""


class FasterWhisperOptions(WhisperOptions):
    """What an operator may set for a model of ``asr/faster-whisper``."""

    compute_type: Literal[
        "auto", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "float16", "bfloat16", "float32"
    ] = "auto"
    """Arithmetic of CTranslate2. ``auto`` is int8 on a processor and float16 on a GPU."""


class TransformersOptions(WhisperOptions):
    """What an operator may set for a model of ``asr/transformers``."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Type of the weights. ``auto`` is float32 on a processor and float16 on a GPU."""
