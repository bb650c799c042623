"""Guesses that a text goes on as it did before: the tokens after the last place where it ended alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sixfold.plugins.llm.sampling import IntArray
from sixfold.plugins.llm.sequence import SequenceState
from sixfold.plugins.llm.token_history import TokenHistory


def continue_from_match(history: IntArray, *, min_match: int, max_match: int, limit: int) -> IntArray:
    """The tokens that followed the longest earlier match of the end of ``history``.

    Of equally long matches the latest wins. Where it is so near that fewer than ``limit`` tokens follow it, the text is in
    a loop, and goes on in it.

    Args:
        history: All tokens.
        min_match: Shorter matches do not count.
        max_match: Longer ones count as this long.
        limit: Tokens to return at most.

    Returns:
        ``limit`` tokens; none without a match.

    Source: Saxena 2023, prompt lookup decoding.
    """
    last = len(history) - 1
    ends = np.flatnonzero(history[:last] == history[last])  # where a match ends; the end itself is none
    length = 1
    while length < max_match and len(ends):
        longer = ends[ends >= length]
        longer = longer[history[longer - length] == history[last - length]]
        if not len(longer):
            break
        ends, length = longer, length + 1
    if length < min_match or not len(ends):
        return history[:0]
    begin = int(ends[-1]) + 1
    return history[begin + np.arange(limit) % (last + 1 - begin)]


class NgramProposer:
    """Proposes what followed the longest match in the sequence's own prompt and answer.

    Args:
        min_match: Least tokens of a match.
        max_match: Most tokens that are compared.
    """

    learns_from_every_step = False

    def __init__(self, *, min_match: int, max_match: int) -> None:
        self._min_match = min_match
        self._max_match = max_match

    def follow(self, sequences: Sequence[SequenceState]) -> None:
        """A sequence's own tokens say all."""

    def propose(self, sequences: Sequence[SequenceState], limits: Sequence[int]) -> list[list[int]]:
        """Up to ``limits`` tokens for each sequence."""
        return [self._propose(sequence, limit) for sequence, limit in zip(sequences, limits, strict=True)]

    def _propose(self, sequence: SequenceState, limit: int) -> list[int]:
        if sequence.history is None:
            sequence.history = TokenHistory()
        history = sequence.history.follow(sequence.token_ids)
        found: list[int] = continue_from_match(
            history, min_match=self._min_match, max_match=self._max_match, limit=limit
        ).tolist()
        return found

    def release(self, sequence: SequenceState) -> None:
        """Nothing is held outside of the sequence."""
