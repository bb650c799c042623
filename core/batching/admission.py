"""Admission: bounds the work that waits, in the model's units, and says when to come back.

Shared by the event loop (which admits) and the device thread (which drains), so it holds the one lock of the manager.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

from sixfold.core.errors import QueueFull

_RATE_WINDOW_S = 10.0
# Seconds of work after which there is a speed, since a cold replica must not take in an hour's work at once, and after which
# it is that of prompts and answers together, and worth remembering.
_FIRST_S = 0.5
_STEADY_S = 6.0
_BEST_WINDOW_S = 120.0
_SHARING = 4
"""Requests that a bound in seconds always lets in: on a machine that is slower than it was thought to be, a single one may take
all of the seconds, and one at a time no batch would ever show how fast it is."""


class Ticket:
    """The admitted, not yet done work of one request. Owner: the Admission that made it."""

    __slots__ = ("remaining_units",)

    def __init__(self, units: int) -> None:
        self.remaining_units = units


class DrainRate:
    """Units per second over the time in which there was work: an average that forgets over about ten seconds."""

    def __init__(self) -> None:
        self._units = 0.0
        self._seconds = 0.0

    def observe(self, units: int, seconds: float) -> None:
        """Counts one step, or a time in which work went on elsewhere."""
        keep = math.exp(-seconds / _RATE_WINDOW_S)
        self._units = self._units * keep + units
        self._seconds = self._seconds * keep + seconds

    @property
    def units_per_s(self) -> float:
        """0 before the first step."""
        return self._units / self._seconds if self._seconds > 0.0 else 0.0

    @property
    def seconds(self) -> float:
        """Of work, lately; never more than the window."""
        return self._seconds


class Admission:
    """Bounds the admitted work of a replica.

    Args:
        max_queue_units: Work that may be admitted and not done. A request larger than that is admitted only when nothing
            else is there, so that it is slow rather than impossible.
        max_queue_s: The same in seconds of work at the replica's own speed, once that is known; None for no such bound. Never
            fewer than four requests; less than one and a half times what a request takes alone would hold them at these.
    """

    def __init__(self, max_queue_units: int, max_queue_s: float | None = None) -> None:
        self._max_queue_units = max_queue_units
        self._max_queue_s = max_queue_s
        self._lock = threading.Lock()
        self._queued_units = 0
        self._num_requests = 0
        self._rate = DrainRate()
        # Room comes back faster than work is done where answers end before the tokens that they asked for, and what waits is
        # counted by what was asked for: bounds and promises go by this rate.
        self._room_rate = DrainRate()
        self._freed_units = 0
        self._best_units_per_s = 0.0

    @property
    def queued_units(self) -> int:
        """Admitted work that is not done."""
        return self._queued_units

    @property
    def num_requests(self) -> int:
        """Admitted requests that have not ended."""
        return self._num_requests

    @property
    def units_per_s(self) -> float:
        """Measured drain rate."""
        return self._rate.units_per_s

    def admit(self, units: int) -> Ticket:
        """Takes room for a request's work.

        Raises:
            QueueFull: ``retry_after_s`` is the time in which the present queue drains far enough.
        """
        units = max(1, units)
        with self._lock:
            excess = self._queued_units + units - self._most_units()
            if excess > 0 and self._num_requests > 0:
                raise QueueFull(
                    "The model's queue is full. Retry after the time in the Retry-After header.",
                    retry_after_s=self._room_in_s(units, excess),
                )
            self._queued_units += units
            self._num_requests += 1
            return Ticket(units)

    def _room_in_s(self, wanted: int, excess: float) -> float:
        rate = self._room_rate.units_per_s
        if rate <= 0.0:
            return 1.0
        units = min(excess, self._queued_units)
        if self._queued_units + wanted <= self._max_queue_units:
            # Only the seconds are full: there is room, too, as soon as fewer than `_SHARING` are left.
            units = min(units, self._queued_units * (self._num_requests - _SHARING + 1) / self._num_requests)
        return max(0.05, units / rate)

    def _most_units(self) -> float:
        # A replica that had one request at a time has shown a fraction of what a full batch does: its best rate of late
        # is what a queue drains at.
        room = self._room_rate
        rate = max(room.units_per_s if room.seconds >= _FIRST_S else 0.0, self._best_units_per_s)
        if self._max_queue_s is None or rate <= 0.0 or self._num_requests < _SHARING:
            return self._max_queue_units
        return min(self._max_queue_units, self._max_queue_s * rate)

    def consume(self, grants: Sequence[tuple[Ticket, int]]) -> None:
        """Counts work of tickets as done."""
        with self._lock:
            for ticket, wanted in grants:
                units = min(wanted, ticket.remaining_units)
                ticket.remaining_units -= units
                self._queued_units -= units
                self._freed_units += units

    def observe_step(self, units: int, seconds: float) -> None:
        """Feeds the drain rate."""
        with self._lock:
            self._rate.observe(units, seconds)
            self._room_rate.observe(self._freed_units, seconds)
            self._freed_units = 0
            self._best_units_per_s *= math.exp(-seconds / _BEST_WINDOW_S)
            if self._room_rate.seconds >= _STEADY_S:
                self._best_units_per_s = max(self._best_units_per_s, self._room_rate.units_per_s)

    def leave(self, ticket: Ticket, *, finished: bool = False) -> None:
        """Gives back what is left of a ticket. Called exactly once, when its request ends.

        Args:
            ticket: From `admit`.
            finished: It was answered; what it did not need is work that others of its kind will not need either. The room of
                one that was cancelled says nothing about theirs.
        """
        with self._lock:
            if finished:
                self._freed_units += ticket.remaining_units
            self._queued_units -= ticket.remaining_units
            ticket.remaining_units = 0
            self._num_requests -= 1
