"""Admission: bounds the work that waits, in the model's units, and says when to come back.

Shared by the event loop (which admits) and the device thread (which drains), so it holds the one lock of the manager.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence

from sixfold.core.batching.drain import FIRST_S, DrainRate, SpeedByDepth, Stretch
from sixfold.core.errors import WOULD_BE_LATE, QueueFull
from sixfold.core.messages import Priority

_STEADY_S = 6.0
"""Seconds of work after which the speed is that of prompts and answers together, and worth remembering."""
_BEST_WINDOW_S = 120.0
_SHARING = 4
"""Requests that a bound in seconds always lets in: on a machine that is slower than it was thought to be, a single one may take
all of the seconds, and one at a time no batch would ever show how fast it is."""
_SPARE = 0.85
"""Of its time a request may be expected to use up so much. What is admitted stays; without a reserve a small error would make all
late that came before the first of them was seen to be."""
_TIGHT = 0.5
"""Only requests whose time was expected to use up so much of what they had tell how long requests take in a full queue."""
_LEARN_FROM_S = 1.0
"""A shorter time may be shorter than a step, which says nothing of queues."""


class Flow:
    """The admitted work of one tenant and class, which the scheduler serves by weight. Owner: the Admission that made it."""

    __slots__ = ("key", "num_requests", "queued_units", "weight")

    def __init__(self, key: tuple[str, Priority], weight: float) -> None:
        self.key = key
        self.weight = weight
        self.queued_units = 0
        self.num_requests = 0


class Ticket:
    """The admitted, not yet done work of one request. Owner: the Admission that made it.

    Attributes:
        remaining_units: What is not done of it.
        flow: Whose it is.
        admitted_s: When it was admitted.
        drain_s: The time in which all that goes before its end would be done; 0 where that says nothing: the request has no
            deadline, or one that is very near or far away.
    """

    __slots__ = ("admitted_s", "drain_s", "flow", "remaining_units")

    def __init__(self, units: int, flow: Flow, admitted_s: float, drain_s: float) -> None:
        self.remaining_units = units
        self.flow = flow
        self.admitted_s = admitted_s
        self.drain_s = drain_s


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
        self._speed = SpeedByDepth()
        self._flows: dict[tuple[str, Priority], Flow] = {}
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
        self._num_left = 0  # since the last step
        self._stepped_s = clock()  # when the last step ended
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

    def admit(
        self,
        units: int,
        *,
        within_s: float | None = None,
        tenant: str = "",
        priority: Priority = Priority.STANDARD,
        weight: float = 1.0,
    ) -> Ticket:
        """Takes room for a request's work.

        A request that would not end in time, by how requests of its class fared lately at such a depth, is refused now: answered
        too late it would be of no use, and would make others late. Where that is not known it is let in.

        Args:
            units: The work.
            within_s: Seconds until its deadline; None for none. One that has passed is left to whoever ends such requests.
            tenant: Whose it is; the scheduler serves tenants and classes by weight.
            priority: Its class.
            weight: Of the tenant.

        Raises:
            QueueFull: ``retry_after_s`` is the time in which the present queue drains far enough. The code says whether the
                queue is full (``queue_full``) or the request would be late (``would_be_late``).
        """
        units = max(1, units)
        with self._lock:
            total = self._queued_units + units
            excess = total - self._most_units()
            if excess > 0 and self._num_requests > 0:
                raise QueueFull(
                    "The model's queue is full. Retry after the time in the Retry-After header.",
                    retry_after_s=self._room_in_s(units, excess),
                )
            flow = self._flows.get((tenant, priority)) or Flow((tenant, priority), weight * priority.weight)
            drain_s = self._time_for(units, flow, within_s) if within_s is not None and within_s > 0.0 else 0.0
            flow.queued_units += units
            flow.num_requests += 1
            self._flows[flow.key] = flow
            self._queued_units = total
            self._num_requests += 1
            return Ticket(units, flow, self._clock(), drain_s)

    def _time_for(self, units: int, flow: Flow, within_s: float) -> float:
        """The time in which what goes before the end of such a request drains, if that tells anything, else 0.

        Raises:
            QueueFull: It would be late.
        """
        total = self._queued_units + units
        rate = self._speed.at(self._num_requests + 1, total)
        if rate <= 0.0 or self._num_requests < _SHARING:
            return 0.0
        # Others' work goes before it only by their weights.
        weights = sum(each.weight for each in self._flows.values()) + (0.0 if flow.num_requests else flow.weight)
        ahead = min(total, (flow.queued_units + units) * weights / flow.weight)
        in_time = _SPARE * within_s * rate / self._stretches[flow.key[1]].factor
        if ahead > in_time:
            raise QueueFull(
                "The model can't answer before the request's deadline. Retry after the time in the Retry-After header.",
                code=WOULD_BE_LATE,
                retry_after_s=self._room_in_s(units, ahead - in_time),
            )
        return ahead / rate if within_s >= _LEARN_FROM_S and ahead > _TIGHT * in_time else 0.0

    def _room_in_s(self, wanted: int, excess: float) -> float:
        rate = self._room_rate.units_per_s
        if rate <= 0.0:
            return 1.0
        units = min(excess, self._queued_units)
        if self._queued_units + wanted <= self._max_queue_units:
            # Only the seconds are full: there is room, too, as soon as fewer than `_SHARING` are left.
            units = min(units, self._queued_units * (self._num_requests - _SHARING + 1) / self._num_requests)
        return max(0.05, self._room_rate.seconds_for(units, self._clock() - self._stepped_s) if units > 0.0 else 0.0)

    def _most_units(self) -> float:
        rate = self._steady_rate()
        if self._max_queue_s is None or rate <= 0.0 or self._num_requests < _SHARING:
            return self._max_queue_units
        return min(self._max_queue_units, self._max_queue_s * rate)

    def _steady_rate(self) -> float:
        # A replica that had one request at a time has shown a fraction of what a full batch does: its best rate of late
        # is what a queue drains at.
        room = self._room_rate
        return max(room.units_per_s if room.seconds >= FIRST_S else 0.0, self._best_units_per_s)

    def consume(self, grants: Sequence[tuple[Ticket, int]]) -> None:
        """Counts work of tickets as done."""
        with self._lock:
            for ticket, wanted in grants:
                units = min(wanted, ticket.remaining_units)
                ticket.remaining_units -= units
                ticket.flow.queued_units -= units
                self._queued_units -= units
                self._freed_units += units

    def observe_step(self, units: int, seconds: float) -> None:
        """Feeds the drain rate."""
        with self._lock:
            self._stepped_s = self._clock()
            self._rate.observe(units, seconds)
            self._room_rate.observe(self._freed_units, seconds, steps=1 if units else 0)
            # The depth before the step: one step may do all that there was.
            num_requests, queued_units = self._num_requests + self._num_left, self._queued_units + self._freed_units
            self._speed.observe(num_requests, queued_units, self._freed_units, seconds)
            self._num_left = 0
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
            flow = ticket.flow
            if ticket.drain_s > 0.0:
                took_s = self._clock() - ticket.admitted_s
                self._stretches[flow.key[1]].saw(took_s / ticket.drain_s, answered=finished)
            if finished:
                self._freed_units += ticket.remaining_units
            self._queued_units -= ticket.remaining_units
            flow.queued_units -= ticket.remaining_units
            flow.num_requests -= 1
            if not flow.num_requests:
                del self._flows[flow.key]
            ticket.remaining_units = 0
            self._num_requests -= 1
            self._num_left += 1
