"""When refusals are a flood: eight of a kind within half a second."""

from __future__ import annotations

from collections import deque

NUM_REFUSALS = 8
WITHIN_S = 0.5


class Flood:
    """The last refusals of one kind; whoever has it says what a kind is."""

    __slots__ = ("_refused_s",)

    def __init__(self) -> None:
        self._refused_s: deque[float] = deque(maxlen=NUM_REFUSALS)

    def refused(self, now_s: float) -> None:
        """One more."""
        self._refused_s.append(now_s)

    def is_on(self, now_s: float) -> bool:
        """Whether there were so many in so short a time."""
        return len(self._refused_s) == NUM_REFUSALS and now_s - self._refused_s[0] <= WITHIN_S

    def is_over(self, now_s: float) -> bool:
        """Whether the last one is so long ago that all may be forgotten."""
        return not self._refused_s or now_s - self._refused_s[-1] > WITHIN_S
