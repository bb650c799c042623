"""What a family of speech synthesis takes and gives, for families that other packages bring: public, as `sixfold.core` is.

``speech`` gets a `SpeechInput`; each step gives a `SpeechOutput` with sound that follows what came before, and the result is
one without. `ModelInfo.details` must hold what `speech_details` makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from sixfold.plugins.tts.schema import SpeechInput, SpeechOutput

__all__ = ["SpeechInput", "SpeechOutput", "speech_details"]


def speech_details(
    *,
    sample_rate_hz: int,
    voices: Sequence[str],
    max_input_characters: int = 4096,
    voice_aliases: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str | int | float | bool]:
    """What the HTTP face needs to know of a model.

    Args:
        sample_rate_hz: Of all its sound.
        voices: Their names; the first is the default. Without commas.
        max_input_characters: Longer texts are refused.
        voice_aliases: Further names of voices, such as OpenAI's.
    """
    return {
        "sample_rate_hz": sample_rate_hz,
        "voices": ",".join(voices),
        "max_input_characters": max_input_characters,
        "voice_aliases": ",".join(f"{alias}={name}" for alias, name in voice_aliases.items()),
    }
