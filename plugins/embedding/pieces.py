"""Cuts the inputs of a request into pieces that the pool prepares apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_PIECE_INPUTS = 64
_PIECE_CHARACTERS = 100_000  # about 20 ms of tokenizing: long enough to pay for the hand-over, short enough to share


@dataclass(frozen=True, slots=True)
class Piece:
    """Inputs ``start`` to ``stop`` of a request."""

    start: int
    stop: int


def cut(lengths: Sequence[int]) -> list[Piece]:
    """Pieces of at most 64 inputs and 100,000 characters (one input is never cut).

    Args:
        lengths: Characters (or token ids) of each input; at least one.
    """
    pieces: list[Piece] = []
    start = characters = 0
    for index, length in enumerate(lengths):
        if index > start and (index - start == _PIECE_INPUTS or characters + length > _PIECE_CHARACTERS):
            pieces.append(Piece(start, index))
            start, characters = index, 0
        characters += length
    pieces.append(Piece(start, len(lengths)))
    return pieces
