"""What crosses the process border: the input, the increments and the result."""

import msgspec


class Text(msgspec.Struct, frozen=True, tag=True):
    """The input."""

    text: str


class Letter(msgspec.Struct, frozen=True, tag=True):
    """An increment: the next letter."""

    letter: str


class Reversed(msgspec.Struct, frozen=True, tag=True):
    """The result."""

    text: str
