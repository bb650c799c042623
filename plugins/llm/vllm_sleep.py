"""Lets an idle model leave the GPU's memory to others, and brings it back for the next request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

_LOG = logging.getLogger(__name__)


class Wakefulness:
    """Counts the requests inside an engine; when there were none for a while, it sleeps. Used in the engine's loop.

    Args:
        sleep: Empties the GPU; called only while no request is inside.
        wake_up: Undoes it.
        after_s: Idle seconds before it sleeps.

    Attributes:
        on_change: Called when it has fallen asleep or is awake again.
    """

    def __init__(
        self, *, sleep: Callable[[], Awaitable[object]], wake_up: Callable[[], Awaitable[object]], after_s: float
    ) -> None:
        self._sleep = sleep
        self._wake_up = wake_up
        self._after_s = after_s
        self.on_change: Callable[[], None] = lambda: None
        self._lock = asyncio.Lock()
        self._num_inside = 0
        self._asleep = False
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def asleep(self) -> bool:
        """Whether the model's memory is given away."""
        return self._asleep

    async def enter(self) -> None:
        """A request comes; returns when the model is awake. If this raises, the request was not counted."""
        self._num_inside += 1
        self._stop_timer()
        try:
            async with self._lock:  # behind a sleep that has begun
                if self._asleep:
                    await self._wake_up()
                    self._asleep = False
                    self.on_change()
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """A request has ended."""
        self._num_inside -= 1
        if self._num_inside == 0:
            self._timer = asyncio.get_running_loop().call_later(self._after_s, self._begin_sleep)

    def close(self) -> None:
        """No sleep begins any more."""
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin_sleep(self) -> None:
        self._timer = None
        self._task = asyncio.create_task(self._sleep_now())

    async def _sleep_now(self) -> None:
        async with self._lock:
            if self._num_inside or self._asleep:
                return
            try:
                await self._sleep()
            except Exception:  # the engine's own trouble: the next request will meet it, or find the model awake
                _LOG.exception("the model could not be put to sleep")
            else:
                self._asleep = True
                self.on_change()
