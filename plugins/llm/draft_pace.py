"""How many tokens to guess ahead for a sequence: as many as pay, by how its guesses fared lately."""

from __future__ import annotations

import math

# What one more row costs, as a share of a whole step at a small batch: guesses less likely than this do not pay.
_ROW_COST = 0.1
# Until something was measured, guesses count as right this often, with the weight of so many of them.
_PRIOR, _PRIOR_WEIGHT = 0.6, 2.0
_FORGET = 0.8  # a verification: the memory is about five of them
_MAX_PAUSE = 64


class DraftPace:
    """The record of one sequence's guesses. Owned by the device thread.

    A guess at place ``i`` is of use with probability ``acceptance ** i``. Guesses are made as far as this exceeds the cost
    of their row; where even the first does not pay, only one is tried now and then, ever more rarely.
    """

    __slots__ = ("_num_accepted", "_num_judged", "_pause", "_pause_left")

    def __init__(self) -> None:
        self._num_accepted = 0.0
        self._num_judged = 0.0
        self._pause = 0
        self._pause_left = 0

    @property
    def acceptance(self) -> float:
        """How likely the next guess is right if all before it are."""
        return (self._num_accepted + _PRIOR * _PRIOR_WEIGHT) / (self._num_judged + _PRIOR_WEIGHT)

    def next_length(self, limit: int) -> int:
        """Guesses to ask for now, at most ``limit``; counts down the pause after guesses that did not pay."""
        if self._pause_left > 0:
            self._pause_left -= 1
            return 0
        length = int(math.log(_ROW_COST) / math.log(self.acceptance)) if self.acceptance < 1 else limit
        return min(max(length, 1), limit)

    def observe(self, num_drafts: int, num_accepted: int) -> None:
        """Records a verification. Guesses after the first wrong one say nothing."""
        self._num_accepted = self._num_accepted * _FORGET + num_accepted
        self._num_judged = self._num_judged * _FORGET + min(num_drafts, num_accepted + 1)
        if num_accepted:
            self._pause = 0
        elif self.acceptance < _ROW_COST * 2:
            self._pause = min(max(2 * self._pause, 4), _MAX_PAUSE)
            self._pause_left = self._pause
