"""Admission: bounds the work that waits, in the model's units, and says when to come back.

Shared by the event loop (which admits) and the device thread (which drains), so it holds the one lock of the manager.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from sixfold.core.errors import WOULD_BE_LATE, QueueFull
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
_ASSUMED_STRETCH = 2.5
"""Requests of one size that all share the steps are half done on average, so each takes twice the time in which the work of all
drains, and a full batch may be slower than the speed that was seen before. Models that answer one after another show soon that
theirs takes less."""
_GIVEN_UP = 1.3
_MOST_STRETCH = 4.0
_MEMORY = 64
_ASSUMED = 16
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


class Stretch:
    """How many times as long as the queue drains requests take until they have ended: 1 where one is done after another, 2
    where equal ones share their steps. What nine of ten kept to lately. One that was given up would have taken longer; since it
    may have wanted the impossible, a single one moves nothing, and many move it by little at a time."""

    def __init__(self) -> None:
        self._seen: deque[float] = deque([_ASSUMED_STRETCH] * _ASSUMED, maxlen=_MEMORY)
        self.factor = _ASSUMED_STRETCH

    def saw(self, factor: float, *, answered: bool) -> None:
        """Counts a request that has ended."""
        if not answered:
            if factor < self.factor:
                return
            factor = self.factor * _GIVEN_UP
        self._seen.append(factor)
        self.factor = min(_MOST_STRETCH, sorted(self._seen)[int(0.9 * len(self._seen))])


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
        return units / seconds if seconds >= _FIRST_S else 0.0


class DrainRate:
    """Units per second over the time in which there was work: an average that forgets over about ten seconds."""

    def __init__(self) -> None:
        self.units = 0.0  # done lately
        self._seconds = 0.0

    def observe(self, units: int, seconds: float) -> None:
        """Counts one step, or a time in which work went on elsewhere."""
        keep = math.exp(-seconds / _RATE_WINDOW_S)
        self.units = self.units * keep + units
        self._seconds = self._seconds * keep + seconds

    @property
    def units_per_s(self) -> float:
        """0 before the first step."""
        return self.units / self._seconds if self._seconds > 0.0 else 0.0

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
        return max(0.05, units / rate)

    def _most_units(self) -> float:
        rate = self._steady_rate()
        if self._max_queue_s is None or rate <= 0.0 or self._num_requests < _SHARING:
            return self._max_queue_units
        return min(self._max_queue_units, self._max_queue_s * rate)

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
                ticket.flow.queued_units -= units
                self._queued_units -= units
                self._freed_units += units

    def observe_step(self, units: int, seconds: float) -> None:
        """Feeds the drain rate."""
        with self._lock:
            self._rate.observe(units, seconds)
            self._room_rate.observe(self._freed_units, seconds)
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
