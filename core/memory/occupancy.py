"""Who uses a model and who waits for it: what decides when it may be unloaded, and whom a finished load serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sixfold.core.errors import NotReady, RequestError

_MAX_WAITING = 1024


class Occupancy:
    """The users of one model. Used in the event loop of its host.

    Every user is counted from `enter` (or from the moment at which its wait ends well) until `leave`; so a model is never
    unloaded between the moment a request is let in and its last byte.

    Args:
        clock: Monotonic seconds.
        on_change: Called when the last user left, or the last that waited gave up.
        max_waiting: Requests that may wait for the model; more are refused.
    """

    def __init__(
        self, clock: Callable[[], float], on_change: Callable[[], None], *, max_waiting: int = _MAX_WAITING
    ) -> None:
        self._clock = clock
        self._on_change = on_change
        self._max_waiting = max_waiting
        self._waiting: dict[asyncio.Future[None], None] = {}
        self.num_users = 0
        self.idle_since_s = clock()

    @property
    def num_waiting(self) -> int:
        """Requests that wait until the model is loaded."""
        return len(self._waiting)

    def enter(self) -> None:
        """Counts a user."""
        self.num_users += 1

    def leave(self) -> None:
        """A user has gone."""
        assert self.num_users > 0, "a user left that was never counted"
        self.num_users -= 1
        if not self.num_users:
            self.idle_since_s = self._clock()
            self._on_change()

    def touch(self) -> None:
        """The model was loaded: it begins to be idle now."""
        self.idle_since_s = self._clock()

    def wait(self) -> asyncio.Future[None]:
        """A place among those that wait; once it is done without an error, its owner is counted as a user.

        Cancel it, or set an error, to give the place up.

        Raises:
            NotReady: Too many wait already.
        """
        if len(self._waiting) >= self._max_waiting:
            raise NotReady(
                f"{len(self._waiting)} requests wait until the model is loaded. Try again soon.",
                code="loading",
                retry_after_s=5.0,
            )
        place = asyncio.get_running_loop().create_future()
        self._waiting[place] = None
        place.add_done_callback(self._on_done)
        return place

    def admit_waiting(self) -> None:
        """The model can be used: all that still wait become users."""
        waiting, self._waiting = self._waiting, {}
        for place in waiting:
            if not place.done():
                place.set_result(None)
                self.num_users += 1

    def refuse_waiting(self, reason: RequestError) -> None:
        """The model can't be loaded: all that wait are told."""
        waiting, self._waiting = self._waiting, {}
        for place in waiting:
            if not place.done():
                place.set_exception(reason)

    def _on_done(self, place: asyncio.Future[None]) -> None:
        if place in self._waiting:  # its owner gave it up: else it was taken out before it was done
            del self._waiting[place]
            if not self._waiting:
                self._on_change()


async def wait_for_place(place: asyncio.Future[None], timeout_s: float | None, leave: Callable[[], None]) -> None:
    """Waits until the owner of a place is a user; leaves again if it is cancelled at that very moment.

    Raises:
        TimeoutError: It took too long.
        RequestError: The model can't be loaded, or whoever waits was told to stop.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await place
    except BaseException:
        if place.done() and not place.cancelled() and place.exception() is None:
            leave()
        raise
