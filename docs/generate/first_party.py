"""What of the installed plugins is this project's own: the reference is the same where strangers' packages are installed, too."""

from __future__ import annotations

from collections.abc import Iterator

from sixfold.core.family import Family
from sixfold.core.hookspecs import PROJECT, Api, Command
from sixfold.core.plugins import Plugins

MODALITIES = ("llm", "embedding", "asr", "tts", "image", "video")
"""In the order in which they are told of."""


def families(plugins: Plugins) -> Iterator[Family]:
    """By modality, then by name."""
    found = [each for each in plugins.families.values() if plugins.distribution_of(f"family {each.name}") == PROJECT]
    yield from sorted(found, key=lambda family: (MODALITIES.index(family.modality), family.name))


def apis(plugins: Plugins) -> Iterator[Api]:
    """The HTTP faces."""
    yield from (each for each in plugins.apis.values() if plugins.distribution_of(f"api {each.modality}") == PROJECT)


def is_own(plugins: Plugins, command: Command) -> bool:
    """Whether a subcommand is built in or of a plugin of ours."""
    offer = f"command {command.name}"
    return offer not in plugins.origin or plugins.distribution_of(offer) == PROJECT
