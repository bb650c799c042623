"""What an answer consists of, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningPart:
    """A piece of what the model thought before its answer."""

    text: str


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call of a tool begins; ``index`` counts the answer's calls."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsPart:
    """A piece of the text of a call's arguments."""

    index: int
    text: str


Part = ReasoningPart | TextPart | CallStart | ArgumentsPart
