"""The voices of a model: their names, other names for them, and blends of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sixfold.core.errors import ConfigError, InvalidRequest
from sixfold.plugins.tts.options import SpeechOptions

MAX_BLENDED = 8


class VoiceNames:
    """Resolves what clients call voices.

    Args:
        names: The model's own, the first is the default.
        options: Aliases and the default.
        model_name: For messages.

    Raises:
        ConfigError: An option names a voice that the model does not have.
    """

    def __init__(self, names: Sequence[str], options: SpeechOptions, model_name: str) -> None:
        self.names = tuple(names)
        self.aliases: Mapping[str, str] = dict(options.voice_aliases)
        self.default = options.default_voice or self.names[0]
        known = ", ".join(self.names)
        for option, name in (
            ("default_voice", self.default),
            *((f"voice_aliases.{a}", n) for a, n in self.aliases.items()),
        ):
            if name not in self.names:
                raise ConfigError(f"models.{model_name}.options.{option}: no voice {name!r}. The model has: {known}.")

    def resolve(self, wanted: str) -> tuple[str, ...]:
        """The model's own names of what a client asked for; several for a blend.

        Raises:
            InvalidRequest: An unknown voice, or too many in a blend.
        """
        return resolve_voices(wanted or self.default, self.names, self.aliases)

    def details(self) -> dict[str, str]:
        """For `ModelInfo.details`, from which the HTTP face lists and checks voices."""
        aliases = ",".join(f"{alias}={name}" for alias, name in self.aliases.items())
        return {"voices": ",".join(self.names), "voice_aliases": aliases, "default_voice": self.default}


def resolve_voices(wanted: str, names: Sequence[str], aliases: Mapping[str, str]) -> tuple[str, ...]:
    """See `VoiceNames.resolve`; also used by the HTTP face, before anything is submitted."""
    parts = [part.strip() for part in wanted.split("+")]
    found = tuple(aliases.get(part, part) for part in parts)
    unknown = next((part for part, name in zip(parts, found, strict=True) if name not in names), None)
    if unknown is not None:
        known = ", ".join((*names, *aliases))
        raise InvalidRequest(f"voice: the model has no voice {unknown[:60]!r}. It has: {known}.", param="voice")
    if len(found) > MAX_BLENDED:
        raise InvalidRequest(f"voice: at most {MAX_BLENDED} voices can be blended.", param="voice")
    return found
