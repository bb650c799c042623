"""Policies that look at load alone: round robin for comparisons, and the power of two choices."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from sixfold.scaling.route.policy import Candidate, Choice, RequestShape


def relative_load(candidate: Candidate) -> tuple[float, float]:
    """Sorts candidates by their load in relation to their weight: first by work, then by requests."""
    return candidate.pending_units / candidate.weight, candidate.num_running / candidate.weight


class _Forgetful:
    """What policies without memory do with what they are told: nothing."""

    def routed(self, request: RequestShape, replica_id: str, now_s: float) -> None:
        """See `Policy.routed`."""

    def computed(self, request: RequestShape, replica_id: str) -> None:
        """See `Policy.computed`."""

    def forget(self, replica_id: str) -> None:
        """See `Policy.forget`."""


class RoundRobin:
    """One after the other, whatever they do: the baseline of every comparison."""

    def __init__(self) -> None:
        self._num_routed = 0

    def choose(self, request: RequestShape, candidates: Sequence[Candidate], now_s: float) -> Choice:
        """See `Policy.choose`."""
        return Choice(index=self._num_routed % len(candidates), reason="round_robin")

    def routed(self, request: RequestShape, replica_id: str, now_s: float) -> None:
        """See `Policy.routed`."""
        self._num_routed += 1

    def computed(self, request: RequestShape, replica_id: str) -> None:
        """See `Policy.computed`."""

    def forget(self, replica_id: str) -> None:
        """See `Policy.forget`."""


class PowerOfTwo(_Forgetful):
    """The less loaded of two that are drawn: nearly as even as the least of all, without everyone running to it.

    Source: Mitzenmacher 2001, "The power of two choices in randomized load balancing".

    Args:
        random: Draws; seeded in tests and simulations.
    """

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(self, request: RequestShape, candidates: Sequence[Candidate], now_s: float) -> Choice:
        """See `Policy.choose`."""
        if len(candidates) == 1:
            return Choice(index=0, reason="only_one")
        # A replica of weight 2 is drawn as often as two of weight 1.
        weights = [candidate.weight for candidate in candidates]
        (first,) = self._random.choices(range(len(candidates)), weights)
        weights[first] = 0.0
        (second,) = self._random.choices(range(len(candidates)), weights)
        lighter = min(first, second, key=lambda index: relative_load(candidates[index]))
        return Choice(index=lighter, reason="power_of_two")
