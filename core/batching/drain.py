"""How fast a replica gets through its work, and how long requests take beside that: what admission promises by."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

_RATE_WINDOW_S = 10.0
FIRST_S = 0.5
"""Seconds of work after which there is a speed, since a cold replica must not take in an hour's work at once."""
_ASSUMED_STRETCH = 2.5
"""Requests of one size that all share the steps are half done on average, so each takes twice the time in which the work of all
drains, and a full batch may be slower than the speed that was seen before. Models that answer one after another show soon that
theirs takes less."""
_GIVEN_UP = 1.3
_MOST_STRETCH = 4.0
_MOST = 0.9
_NEARLY_ALL = 0.97
_MEMORY = 64
_ASSUMED = 16
_NEARLY = 0.05  # of a step's work; what steps do is an average


class Stretch:
    """How many times as long as the queue drains requests take until they have ended: 1 where one is done after another, 2
    where equal ones share their steps. What nearly all that were answered kept to lately: an answer that comes too late is work
    for nothing, and a reserve costs none as long as there is a queue. One that was given up would have taken longer; since it
    may have wanted the impossible, a single one moves nothing, and many move it by little at a time."""

    def __init__(self) -> None:
        self._seen: deque[float] = deque([_ASSUMED_STRETCH] * _ASSUMED, maxlen=_MEMORY)
        self._answered = self._seen.copy()
        self.factor = _ASSUMED_STRETCH

    def saw(self, factor: float, *, answered: bool) -> None:
        """Counts a request that has ended."""
        if answered:
            self._answered.append(factor)
        elif factor < self.factor:
            return
        else:
            factor = self.factor * _GIVEN_UP
        self._seen.append(factor)
        self.factor = min(_MOST_STRETCH, max(_kept_by(_MOST, self._seen), _kept_by(_NEARLY_ALL, self._answered)))


def _kept_by(share: float, seen: Iterable[float]) -> float:
    """What this share stayed below; one alone never tells."""
    by_size = sorted(seen)
    return by_size[min(int(share * len(by_size)), len(by_size) - 2)]


class SpeedByDepth:
    """Units per second, by how much was admitted meanwhile.

    One request at a time shows a fraction of what a batch does, and a few small ones of what large ones do: what is not known is
    not guessed.
    """

    def __init__(self) -> None:
        self._rates: dict[tuple[int, int], DrainRate] = {}

    def observe(self, num_requests: int, queued_units: int, units: int, seconds: float) -> None:
        """Counts a step while so many requests with so much work were admitted."""
        depth = num_requests.bit_length(), queued_units.bit_length()
        rate = self._rates.get(depth)
        if rate is None:
            rate = self._rates[depth] = DrainRate()
        rate.observe(units, seconds)

    def at(self, num_requests: int, queued_units: int) -> float:
        """At a depth like this or a greater one; 0 where that was not seen for half a second."""
        least_requests, least_units = num_requests.bit_length() - 1, queued_units.bit_length() - 1
        units = seconds = 0.0
        for (requests, work), rate in self._rates.items():
            if requests >= least_requests and work >= least_units:
                units += rate.units
                seconds += rate.seconds
        return units / seconds if seconds >= FIRST_S else 0.0


class DrainRate:
    """Units per second over the time in which there was work: an average that forgets over about ten seconds."""

    def __init__(self) -> None:
        self.units = 0.0  # done lately
        self._seconds = 0.0
        self._steps = 0.0

    def observe(self, units: int, seconds: float, *, steps: int = 1) -> None:
        """Counts one step, or a time in which work went on elsewhere."""
        keep = math.exp(-seconds / _RATE_WINDOW_S)
        self.units = self.units * keep + units
        self._seconds = self._seconds * keep + seconds
        self._steps = self._steps * keep + steps

    def seconds_for(self, units: float, since_s: float) -> float:
        """The time until so many units are done: what a step does is done when it ends, and not before.

        Args:
            units: More than 0, of a rate that is known.
            since_s: How long ago the last step ended, when the one that runs now began.
        """
        steps = max(self._steps, 1.0)
        step_s, units_of_a_step = self._seconds / steps, self.units / steps
        return max(0.0, step_s - since_s) + (math.ceil(units / units_of_a_step - _NEARLY) - 1) * step_s

    @property
    def units_per_s(self) -> float:
        """0 before the first step."""
        return self.units / self._seconds if self._seconds > 0.0 else 0.0

    @property
    def seconds(self) -> float:
        """Of work, lately; never more than the window."""
        return self._seconds
