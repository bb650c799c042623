"""How many tokens to guess ahead for a sequence: as many as pay, by how its guesses fared lately."""

from __future__ import annotations

import math

# Until something was measured, guesses count as right this often, with the weight of so many of them.
_PRIOR, _PRIOR_WEIGHT = 0.6, 2.0
_FORGET = 0.8  # a verification: the memory is about five of them
_MIN_PAUSE, _MAX_PAUSE = 4, 64


class DraftPace:
    """The record of one sequence's guesses. Owned by the device thread.

    A guess at place ``i`` is right with probability ``acceptance ** i``. So guesses are made as far as this exceeds their cost;
    where even the first does not pay, one is tried now and then, ever more rarely.
    """

    __slots__ = ("_num_accepted", "_num_judged", "_pause", "_pause_left")

    def __init__(self) -> None:
        self._num_accepted = _PRIOR * _PRIOR_WEIGHT
        self._num_judged = _PRIOR_WEIGHT
        self._pause = 0
        self._pause_left = 0

    @property
    def acceptance(self) -> float:
        """How likely the next guess is right if all before it are."""
        return self._num_accepted / self._num_judged

    def next_length(self, limit: int, *, cost: float) -> int:
        """Guesses to ask for now; counts down the pause while they do not pay.

        Args:
            limit: Most guesses.
            cost: What a guess takes of the time that it saves where it is right; see `RowCost`.
        """
        if cost < self.acceptance:
            length = limit if self.acceptance >= 1 else int(math.log(cost) / math.log(self.acceptance))
            return min(length, limit)
        if self._pause_left > 0:
            self._pause_left -= 1
            return 0
        self._pause_left = self._pause = min(max(2 * self._pause, _MIN_PAUSE), _MAX_PAUSE)
        return min(1, limit)

    def observe(self, num_drafts: int, num_accepted: int) -> None:
        """Records a verification. Guesses after the first wrong one say nothing."""
        self._num_accepted = self._num_accepted * _FORGET + num_accepted
        self._num_judged = self._num_judged * _FORGET + min(num_drafts, num_accepted + 1)
        if num_accepted:
            self._pause = self._pause_left = 0
