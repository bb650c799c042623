"""The limits of one API key: requests at the same time, and requests a minute."""

from __future__ import annotations

from collections.abc import Callable

from sixfold.core.errors import RateLimited
from sixfold.core.serving.settings import KeyLimits


class TokenBucket:
    """Lets ``capacity`` through at once and ``rate_per_s`` in the long run.

    In any time of ``t`` seconds it lets through at most ``capacity + t * rate_per_s``.

    Args:
        capacity: How many it holds; it begins full.
        rate_per_s: How fast it fills up again.
        clock: Monotonic seconds.
    """

    def __init__(self, capacity: float, rate_per_s: float, clock: Callable[[], float]) -> None:
        self._capacity = capacity
        self._rate_per_s = rate_per_s
        self._clock = clock
        self._level = capacity
        self._filled_at_s = clock()

    def take(self) -> float:
        """Takes one and returns 0, or takes nothing and returns the seconds until there will be one."""
        now_s = self._clock()
        self._level = min(self._capacity, self._level + max(0.0, now_s - self._filled_at_s) * self._rate_per_s)
        self._filled_at_s = now_s
        if self._level >= 1.0:
            self._level -= 1.0
            return 0.0
        return (1.0 - self._level) / self._rate_per_s


class KeyLimiter:
    """Counts the requests of one key.

    Args:
        key_name: For messages.
        limits: What the configuration allows it.
        clock: Monotonic seconds.
    """

    def __init__(self, key_name: str, limits: KeyLimits, clock: Callable[[], float]) -> None:
        self._key_name = key_name
        self._max_concurrent = limits.max_concurrent_requests
        self._per_minute = limits.requests_per_minute
        self._bucket = TokenBucket(self._per_minute, self._per_minute / 60.0, clock) if self._per_minute else None
        self.num_running = 0

    def begin(self) -> None:
        """Counts a request that begins; each must be given to `end` once.

        Raises:
            RateLimited: The key has used up a limit; the request was not counted.
        """
        if self._max_concurrent is not None and self.num_running >= self._max_concurrent:
            raise RateLimited(
                f"The key {self._key_name!r} may run {self._max_concurrent} requests at the same time. "
                "Wait for one to end.",
                retry_after_s=1.0,
            )
        if self._bucket is not None:
            wait_s = self._bucket.take()
            if wait_s > 0.0:
                raise RateLimited(
                    f"The key {self._key_name!r} may send {self._per_minute} requests a minute. "
                    f"Try again in {wait_s:.1f} s.",
                    retry_after_s=wait_s,
                )
        self.num_running += 1

    def end(self) -> None:
        """Counts a request that ended."""
        self.num_running -= 1
