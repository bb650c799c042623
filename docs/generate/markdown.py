"""Pieces of Markdown, as all generated pages write them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence

NOTE = "<!-- Made by `python -m docs.generate` from the code: change the text there. -->\n"
"""The first line of every generated page."""

_ROLE = re.compile(r":\w+:`([^`]*)`")
_SPACE = re.compile(r"\s+")


def prose(text: str) -> str:
    """Words of a docstring as Markdown on one line."""
    plain = _ROLE.sub(r"`\1`", text.replace("``", "`"))
    return _SPACE.sub(" ", plain).strip()


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return prose(text).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with one line a row."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def summary(thing: object) -> str:
    """The first sentence of what a thing says of itself.

    Raises:
        ValueError: It says nothing.
    """
    text = inspect.getdoc(thing)
    if not text:
        raise ValueError(f"{thing!r} has no docstring. Say in one sentence what it is for.")
    return prose(text.partition("\n\n")[0])


def attributes(kind: type) -> dict[str, str]:
    """What a class says under ``Attributes:``, by name."""
    text = inspect.getdoc(kind) or ""
    found: dict[str, str] = {}
    name = ""
    for line in text.partition("Attributes:\n")[2].splitlines():
        entry = re.match(r"    (\w+): (.*)", line)
        if entry:
            name = entry[1]
            found[name] = entry[2]
        elif name and line.startswith("        "):
            found[name] += " " + line.strip()
        elif line.strip():
            break
    return {name: prose(text) for name, text in found.items()}
