"""All readers of foreign bytes, by group: what a group imports, one process of the fuzzer imports."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from tests.fuzz.target import Target

GROUPS = {
    "http": "HTTP_TARGETS",
    "body": "BODY_TARGETS",
    "media": "MEDIA_TARGETS",
    "file": "FILE_TARGETS",
    "link": "LINK_TARGETS",
    "text": "TEXT_TARGETS",
}
"""Each lies in a module of its name."""


def targets_of(group: str) -> Sequence[Target]:
    """The readers of a group; imports it."""
    found: Sequence[Target] = getattr(import_module(f"tests.fuzz.{group}_targets"), GROUPS[group])
    return found
