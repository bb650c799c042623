"""Finds stop strings in text that arrives in pieces, and never lets out the beginning of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Holds back text until it can't be the start of a stop string any more. One per sequence.

    Args:
        stops: The stop strings, none empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str, *, may_stop: bool = True) -> tuple[str, bool]:
        """Takes new text; returns what may be sent and whether a stop string was completed.

        The text before the earliest stop string is returned; the stop string and what follows are dropped.

        Args:
            text: The new characters.
            may_stop: False while the answer may not end yet: everything passes and nothing is remembered.
        """
        if not self._stops:
            return text, False
        pending = self._held + text
        self._held = ""
        if not may_stop:
            return pending, False
        first = min((at for at in map(pending.find, self._stops) if at >= 0), default=-1)
        if first >= 0:
            return pending[:first], True
        keep = self._num_ambiguous(pending)
        if keep:
            self._held = pending[-keep:]
            return pending[:-keep], False
        return pending, False

    def flush(self) -> str:
        """What was held back, when the answer ends for another reason."""
        held, self._held = self._held, ""
        return held

    def _num_ambiguous(self, pending: str) -> int:
        """Length of the longest end of ``pending`` that a stop string begins with."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(pending)), longest, -1):
                if pending.endswith(stop[:length]):
                    longest = length
                    break
        return longest
