"""Bounds on work that is done twice: retries as a share of what runs, hedges as a share of what comes."""

from __future__ import annotations

import asyncio
import statistics
from collections import deque

from sixfold.scaling.gateway.settings import HedgeSettings, RetrySettings

_KEPT_DELAYS = 512
_MIN_DELAYS = 20
_MAX_SAVED_HEDGES = 10.0


class RetryBudget:
    """Retries that run at the same time. Used in one event loop.

    So a fleet that is overloaded gets at most a fifth more from those it refused, and what a dead replica left behind comes
    back to the others in waves.

    Source: Envoy's retry budgets (20% of active requests, at least 3).
    """

    def __init__(self, settings: RetrySettings) -> None:
        self._settings = settings
        self._num_requests = 0
        self._num_retries = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def num_retries(self) -> int:
        """Retries that run."""
        return self._num_retries

    def enter(self) -> None:
        """A request begins to run."""
        self._num_requests += 1

    def leave(self) -> None:
        """A request has ended."""
        self._num_requests -= 1

    def try_take(self) -> bool:
        """Takes the place of one retry, if there is one; give it back with `give_back`."""
        if self._waiting or not self._has_room():
            return False
        self._num_retries += 1
        return True

    async def take(self) -> None:
        """Waits for the place of one retry, in order of arrival."""
        if self.try_take():
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.give_back()  # it was given a place in the same moment
            elif place in self._waiting:  # `give_back` clears away those that it meets
                self._waiting.remove(place)
            raise

    def give_back(self) -> None:
        """A retry has its answer or is given up."""
        self._num_retries -= 1
        while self._waiting and self._has_room():
            place = self._waiting.popleft()
            if not place.done():  # one whose waiter was cancelled, and has not run since, is still in the queue
                self._num_retries += 1
                place.set_result(None)

    def _has_room(self) -> bool:
        return self._num_retries < max(self._settings.min_concurrent, int(self._settings.budget * self._num_requests))


class HedgeClock:
    """When a request of one model is late, and whether another try is within the budget. Used in one event loop."""

    def __init__(self, settings: HedgeSettings) -> None:
        self._settings = settings
        self._delays_s: deque[float] = deque(maxlen=_KEPT_DELAYS)
        self._saved = 0.0

    def arrived(self) -> None:
        """A request came: it earns a share of a hedge."""
        self._saved = min(_MAX_SAVED_HEDGES, self._saved + self._settings.budget)

    def answered(self, delay_s: float) -> None:
        """The first byte of an answer came after ``delay_s`` seconds."""
        self._delays_s.append(delay_s)

    def late_after_s(self) -> float | None:
        """After how many seconds a request is late; None while too few were seen, or where hedging is off."""
        if not self._settings.enabled or len(self._delays_s) < _MIN_DELAYS:
            return None
        cuts = statistics.quantiles(self._delays_s, n=100, method="inclusive")
        return cuts[min(98, round(self._settings.quantile * 100) - 1)]

    def try_take(self) -> bool:
        """Spends a hedge, if one was earned."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True
