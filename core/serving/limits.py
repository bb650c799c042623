"""The limits of one API key: requests at the same time, requests a minute, tokens a minute."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

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
        wait_s = self.wait_s()
        if wait_s == 0.0:
            self._level -= 1.0
        return wait_s

    def charge(self, amount: float) -> None:
        """Takes an amount that was used already, into debt if need be."""
        self._level = self.level - amount

    def wait_s(self) -> float:
        """Seconds until there will be one; 0 if there is."""
        return max(0.0, 1.0 - self.level) / self._rate_per_s

    @property
    def level(self) -> float:
        """How many it holds now; negative where more was charged."""
        now_s = self._clock()
        self._level = min(self._capacity, self._level + max(0.0, now_s - self._filled_at_s) * self._rate_per_s)
        self._filled_at_s = now_s
        return self._level

    @property
    def full_in_s(self) -> float:
        """Seconds until it is full."""
        return (self._capacity - self.level) / self._rate_per_s


class _EndTimes:
    """How long it takes, lately, until the next of the running requests ends.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since_s = 0.0
        self.typical_s: float | None = None  # None before the first end

    def began_alone(self) -> None:
        """Nothing ran before: the time without requests is no time between ends."""
        self._since_s = self._clock()

    def ended(self) -> None:
        """One has ended."""
        now_s = self._clock()
        took_s, self._since_s = now_s - self._since_s, now_s
        self.typical_s = took_s if self.typical_s is None else self.typical_s + 0.2 * (took_s - self.typical_s)


@dataclass(frozen=True, slots=True)
class _Minute:
    """So many a minute, all at once or spread."""

    limit: int
    bucket: TokenBucket

    @classmethod
    def of(cls, limit: int | None, clock: Callable[[], float]) -> _Minute | None:
        return None if limit is None else cls(limit, TokenBucket(limit, limit / 60.0, clock))


def duration_text(seconds: float) -> str:
    """A time as OpenAI's rate limit headers have it: ``6m0s``, ``1.5s``, ``20ms``."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    text = f"{rest / 1000:g}s"
    return f"{minutes}m{text}" if minutes else text


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
        self._requests = _Minute.of(limits.requests_per_minute, clock)
        self._tokens = _Minute.of(limits.tokens_per_minute, clock)
        self._ends = _EndTimes(clock)
        self.num_running = 0

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """What is left, as OpenAI's clients read it; nothing where a limit is not set."""
        found: list[tuple[bytes, bytes]] = []
        for what, minute in ((b"requests", self._requests), (b"tokens", self._tokens)):
            if minute is not None:
                bucket = minute.bucket
                found += [
                    (b"x-ratelimit-limit-" + what, b"%d" % minute.limit),
                    (b"x-ratelimit-remaining-" + what, b"%d" % max(0, int(bucket.level))),
                    (b"x-ratelimit-reset-" + what, duration_text(bucket.full_in_s).encode()),
                ]
        return tuple(found)

    def charge_tokens(self, num_tokens: int) -> None:
        """Counts tokens that a request has used."""
        if self._tokens is not None:
            self._tokens.bucket.charge(num_tokens)

    def begin(self) -> None:
        """Counts a request that begins; each must be given to `end` once.

        Raises:
            RateLimited: The key has used up a limit; the request was not counted.
        """
        if self._max_concurrent is not None and self.num_running >= self._max_concurrent:
            raise RateLimited(
                f"The key {self._key_name!r} may run {self._max_concurrent} requests at the same time. "
                "Wait for one to end.",
                retry_after_s=1.0 if self._ends.typical_s is None else self._ends.typical_s,
            )
        # First the tokens, which are only looked at: a request that they refuse uses up none of the requests.
        if self._tokens is not None:
            self._refuse_for(self._tokens.bucket.wait_s(), f"use {self._tokens.limit} tokens a minute")
        if self._requests is not None:
            self._refuse_for(self._requests.bucket.take(), f"send {self._requests.limit} requests a minute")
        if not self.num_running:
            self._ends.began_alone()
        self.num_running += 1

    def _refuse_for(self, wait_s: float, allowed: str) -> None:
        if wait_s > 0.0:
            raise RateLimited(
                f"The key {self._key_name!r} may {allowed}. Try again in {wait_s:.1f} s.", retry_after_s=wait_s
            )

    def end(self) -> None:
        """Counts a request that ended."""
        self.num_running -= 1
        self._ends.ended()
