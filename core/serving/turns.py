"""Requests of a flood are looked at in groups: where most are refused, looking is what costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sixfold.core.runtime.flood import Flood

TURN_S = 0.05
MOST = 16
"""Of one turn. More at once would keep the event loop from everything else for longer than a turn is worth."""
_MANY_PATHS = 32


class Turns:
    """While a path is flooded, its requests wait for the next turn, at most 50 ms, and are looked at together.

    On a machine whose cores all work for models, each request that comes alone stops one of them, and those that share its step
    wait with it; and all that a request touches in the serving process has left the processor's caches since the last one. In
    groups a refusal costs a fraction of that. Nobody is turned away here, and as long as nobody is refused nobody waits.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._floods: dict[str, Flood] = {}
        self._next: asyncio.Event | None = None
        self._num_next = 0

    def __len__(self) -> int:
        """Paths that are remembered."""
        return len(self._floods)

    def refused(self, path: str) -> None:
        """A request of this path was answered with 429."""
        now_s = self._clock()
        flood = self._floods.get(path)
        if flood is None:
            if len(self._floods) >= _MANY_PATHS:
                self._floods = {each: flood for each, flood in self._floods.items() if not flood.is_over(now_s)}
            if len(self._floods) >= _MANY_PATHS:
                return  # that is no flood of one path
            flood = self._floods[path] = Flood()
        flood.refused(now_s)

    def is_flooded(self, path: str) -> bool:
        """Whether requests of this path wait now."""
        flood = self._floods.get(path)
        return flood is not None and flood.is_on(self._clock())

    async def turn(self) -> None:
        """Returns with the others that wait, of whatever path."""
        turn = self._next
        if turn is None:
            turn = self._next = asyncio.Event()
            self._num_next = 0
            asyncio.get_running_loop().call_later(TURN_S, self._begin, turn)
        self._num_next += 1
        if self._num_next == MOST:
            self._begin(turn)
        await turn.wait()

    def _begin(self, turn: asyncio.Event) -> None:
        turn.set()
        if self._next is turn:
            self._next = None
