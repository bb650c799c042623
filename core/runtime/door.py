"""The door of a replica in another process: what it has just refused need not be sent there to be refused again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sixfold.core.errors import QueueFull
from sixfold.core.messages import Priority
from sixfold.core.runtime.flood import Flood

_MOST_S = 0.1
_SHARE = 0.125
"""What is said of the room there will be holds as long as nothing else changes; and the queue must not run dry meanwhile, which
holds less than a request has time."""
_ALIKE = 1.05  # times that are as long as this are equal; requests are a little older when they come here
_AS_LARGE = 1.1
_LEAST_TOLD_S = 0.01
_MANY_KEYS = 128


@dataclass(slots=True)
class _Closed:
    """What is known of one tenant and class, and of sizes that differ by a factor below two: larger ones wait for longer."""

    flood: Flood = field(default_factory=Flood)  # before it is one, each request asks for itself
    until_s: float = 0.0
    room_s: float = 0.0  # when the replica said there would be room
    within_s: float = 0.0  # of the request whose refusal closed it
    num_bytes: int = 0  # of the same
    error: QueueFull | None = None


class Door:
    """Closes for whoever floods a full replica, until the time at which it said there will be room.

    To refuse is the cheapest thing that a server does, and in a flood what it does most: a frame to the worker, a thread that
    wakes there in the middle of a step and another that answers cost more than all else of it.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._closed: dict[tuple[str, Priority, int], _Closed] = {}

    def __len__(self) -> int:
        """Tenants, classes and sizes that are remembered."""
        return len(self._closed)

    def pass_or_refuse(self, tenant: str, priority: Priority, within_s: float | None, num_bytes: int) -> None:
        """Lets a request through to the replica, unless that has just refused one like it, no larger and with as much time.

        Args:
            tenant: Whose it is.
            priority: Its class.
            within_s: Seconds until its deadline; None for none.
            num_bytes: Size of its message.

        Raises:
            QueueFull: With what is left of the time that the replica named.
        """
        closed = self._closed.get((tenant, priority, num_bytes.bit_length()))
        if closed is None or closed.error is None:
            return
        now_s = self._clock()
        is_alike = _seconds(within_s) <= closed.within_s * _ALIKE and num_bytes * _AS_LARGE >= closed.num_bytes
        if now_s < closed.until_s and is_alike:
            closed.flood.refused(now_s)
            raise QueueFull(
                closed.error.message, code=closed.error.code, retry_after_s=max(_LEAST_TOLD_S, closed.room_s - now_s)
            )

    def refused(
        self, tenant: str, priority: Priority, within_s: float | None, num_bytes: int, error: QueueFull
    ) -> None:
        """The replica has refused this request."""
        if error.retry_after_s is None:
            return
        now_s = self._clock()
        key = (tenant, priority, num_bytes.bit_length())
        closed = self._closed.get(key)
        if closed is None:
            self._forget_old(now_s)
            closed = self._closed[key] = _Closed()
        closed.flood.refused(now_s)
        if closed.flood.is_on(now_s):
            closed.room_s = now_s + error.retry_after_s
            closed.until_s = now_s + min(error.retry_after_s, _MOST_S, _SHARE * _seconds(within_s))
            closed.within_s = _seconds(within_s)
            closed.num_bytes = num_bytes
            closed.error = error

    def _forget_old(self, now_s: float) -> None:
        if len(self._closed) >= _MANY_KEYS:
            self._closed = {whose: each for whose, each in self._closed.items() if not each.flood.is_over(now_s)}


def _seconds(within_s: float | None) -> float:
    return float("inf") if within_s is None else within_s
