"""Admission: bounds the work that waits, in the model's units, and says when to come back.

Shared by the event loop (which admits) and the device thread (which drains), so it holds the one lock of the manager.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from sixfold.core.errors import QueueFull
from sixfold.core.messages import Priority

_RATE_WINDOW_S = 10.0
# Seconds of work after which there is a speed, since a cold replica must not take in an hour's work at once, and after which
# it is that of prompts and answers together, and worth remembering.
_FIRST_S = 0.5
_STEADY_S = 6.0
_BEST_WINDOW_S = 120.0
_SHARING = 4
"""Requests that a bound in seconds always lets in: on a machine that is slower than it was thought to be, a single one may take
all of the seconds, and one at a time no batch would ever show how fast it is."""
_SHARED_STEPS = 2.0
"""Requests of one size that all share the steps are half done on average, so each takes twice the time in which the work of all
drains; models that answer one after another show soon that theirs do not."""
_LATE_MEMORY = 64
_ASSUMED = 16
_GIVEN_UP = 1.1
_MOST = 8.0
_LEARN_FROM_S = 1.0
"""A shorter time may be shorter than a step, which says nothing of queues; and a client that wants answers in a millisecond must
not make the server think that nobody can be answered."""
_SPARE = 0.85
"""Of its time a request may be expected to use up so much. What is admitted stays; without a reserve a small error would make all
late that came before the first of them was seen to be."""
_TIGHT = 0.5
"""Only requests whose time was expected to use up so much of what they had tell how long requests take in a full queue."""


class Ticket:
    """The admitted, not yet done work of one request. Owner: the Admission that made it.

    Attributes:
        remaining_units: What is not done of it.
        priority: Of the request.
        admitted_s: When it was admitted.
        drain_s: The time in which all that was admitted then, itself included, would be done; 0 where that says nothing: the
            request has no deadline, or one that is very near or far away.
    """

    __slots__ = ("admitted_s", "drain_s", "priority", "remaining_units")

    def __init__(self, units: int, priority: Priority, admitted_s: float, drain_s: float) -> None:
        self.remaining_units = units
        self.priority = priority
        self.admitted_s = admitted_s
        self.drain_s = drain_s


class Stretch:
    """How many times as long as the queue drains requests take until they have ended: 1 where one is done after another, 2
    where equal ones share their steps, more for those that others overtake. The greatest of late, for a promise to be kept."""

    def __init__(self) -> None:
        self._seen: deque[float] = deque([_SHARED_STEPS] * _ASSUMED, maxlen=_LATE_MEMORY)
        self.factor = _SHARED_STEPS

    def saw(self, factor: float, *, ended: bool) -> None:
        """Counts a request; one that was given up says only that it would have taken longer."""
        factor = factor if ended else factor * _GIVEN_UP
        if ended or factor > self.factor:
            self._seen.append(min(factor, _MOST))
            self.factor = max(self._seen)


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
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        max_queue_units: int,
        max_queue_s: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._stretches = {priority: Stretch() for priority in Priority}
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

    def admit(self, units: int, *, within_s: float | None = None, priority: Priority = Priority.STANDARD) -> Ticket:
        """Takes room for a request's work.

        A request that would not end in time, by how requests of its priority fared lately, is refused now: answered too late it
        would be of no use, and would make others late.

        Args:
            units: The work.
            within_s: Seconds until its deadline; None for none. One that has passed is left to whoever ends such requests.
            priority: Of the request.

        Raises:
            QueueFull: ``retry_after_s`` is the time in which the present queue drains far enough.
        """
        units = max(1, units)
        with self._lock:
            rate = self._steady_rate()
            stretch = self._stretches[priority].factor
            bound: float = self._max_queue_units
            in_time = _SPARE * within_s * rate / stretch if within_s is not None and within_s > 0.0 < rate else math.inf
            if rate > 0.0 and self._num_requests >= _SHARING:
                bound = min(bound, math.inf if self._max_queue_s is None else self._max_queue_s * rate, in_time)
            total = self._queued_units + units
            if total > bound and self._num_requests > 0:
                why = " can't answer before the request's deadline" if bound == in_time else "'s queue is full"
                raise QueueFull(
                    f"The model{why}. Retry after the time in the Retry-After header.",
                    retry_after_s=self._room_in_s(units, total - bound),
                )
            self._queued_units = total
            self._num_requests += 1
            tells = within_s is not None and within_s >= _LEARN_FROM_S and total > _TIGHT * in_time
            return Ticket(units, priority, self._clock(), total / rate if tells else 0.0)

    def _room_in_s(self, wanted: int, excess: float) -> float:
        rate = self._room_rate.units_per_s
        if rate <= 0.0:
            return 1.0
        units = min(excess, self._queued_units)
        if self._queued_units + wanted <= self._max_queue_units:
            # Only the seconds are full: there is room, too, as soon as fewer than `_SHARING` are left.
            units = min(units, self._queued_units * (self._num_requests - _SHARING + 1) / self._num_requests)
        return max(0.05, units / rate)

    def _steady_rate(self) -> float:
        # A replica that had one request at a time has shown a fraction of what a full batch does: its best rate of late
        # is what a queue drains at.
        room = self._room_rate
        return max(room.units_per_s if room.seconds >= _FIRST_S else 0.0, self._best_units_per_s)

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
            if ticket.drain_s > 0.0:
                took_s = self._clock() - ticket.admitted_s
                self._stretches[ticket.priority].saw(took_s / ticket.drain_s, ended=finished)
            if finished:
                self._freed_units += ticket.remaining_units
            self._queued_units -= ticket.remaining_units
            ticket.remaining_units = 0
            self._num_requests -= 1
