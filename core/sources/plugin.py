"""Entry point of the sources that come with Sixfold; others join through the same hook."""

from __future__ import annotations

from collections.abc import Callable

from sixfold.core.hookspecs import Source, hookimpl
from sixfold.core.sources.files import FileSource
from sixfold.core.sources.huggingface import HuggingFaceSource
from sixfold.core.sources.wheels import WheelSource


@hookimpl
def register_sources(register: Callable[[Source], None]) -> None:
    """Offers ``file:``, ``hf:`` and ``pypi:``."""
    register(FileSource())
    register(HuggingFaceSource())
    register(WheelSource())
