"""Lets lines of batches run where nobody else needs the model, and a bounded few beside others."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from sixfold.core.serving.settings import BatchSettings

_LOOK_EVERY_S = 0.05
"""How soon a line begins after a model was left by others; nobody tells when that is."""


class IdleGate:
    """Counts the lines that run. Used in the event loop.

    The bound that it keeps: at most ``max_rows`` lines run in all, and while requests above the class batch run at a
    model, no line begins there that makes more than ``max_rows_beside_others``. Lines that run go on: in the steps that they
    share with others they have the weight of their class (`Priority.weight`), 1 to 4 or to 16.

    Args:
        settings: The bounds.
        num_urgent: How many requests of others run at the model of a name.
        is_closed: Whether no line may begin at all: the server goes down.
    """

    def __init__(
        self, settings: BatchSettings, num_urgent: Callable[[str], int], is_closed: Callable[[], bool] = lambda: False
    ) -> None:
        self._is_closed = is_closed
        self._settings = settings
        self._num_urgent = num_urgent
        self._running: Counter[str] = Counter()
        self._left = asyncio.Event()

    @property
    def num_running(self) -> int:
        """Lines that entered and have not left."""
        return self._running.total()

    @property
    def models(self) -> tuple[str, ...]:
        """Where lines run."""
        return tuple(self._running)

    async def enter(self, model: str) -> None:
        """Waits for the turn of a line and counts it; each must `leave` once."""
        while not self._is_open(model):
            self._left.clear()
            try:
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._left.wait()
            except TimeoutError:
                continue
        self._running[model] += 1

    def leave(self, model: str) -> None:
        """Counts a line that is done, or gave its place up."""
        self._running[model] -= 1
        if not self._running[model]:
            del self._running[model]  # names come from clients: none may stay
        self._left.set()

    def _is_open(self, model: str) -> bool:
        settings = self._settings
        if self._is_closed() or self.num_running >= settings.max_rows:
            return False
        return self._running[model] < settings.max_rows_beside_others or self._num_urgent(model) == 0
