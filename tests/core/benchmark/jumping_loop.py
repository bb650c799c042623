"""An event loop whose time is made of its timers: a wait of an hour takes no time, and happens exactly when it should."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now_s += timeout or 0.0
        return super().select(0)


def run_jumping(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Runs a coroutine that waits for timers only; ``asyncio.get_running_loop().time`` is its clock."""
    selector = _JumpingSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s  # type: ignore[method-assign]  # the one clock of all its timers
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work)
