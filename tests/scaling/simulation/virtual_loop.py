"""An asyncio loop whose time jumps to the next timer: hours pass in milliseconds, and one seed gives one run."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


class _NoSelector(selectors.BaseSelector):
    """Waits for nothing, but lets the loop's time pass; there are no sockets and no threads to wait for."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        self._advance = advance
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self._keys[fileobj] = key = selectors.SelectorKey(fileobj, 0, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "every task waits and no timer is set"
        self._advance(timeout)
        return []

    def get_map(self) -> Any:
        return self._keys


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its `time` starts at 1000 s and moves only when nothing else is to be done."""

    def __init__(self) -> None:
        self._now_s = 1000.0
        super().__init__(_NoSelector(self._advance))

    def _advance(self, seconds: float) -> None:
        self._now_s += max(0.0, seconds)

    def time(self) -> float:
        return self._now_s


def run_virtually(make: Callable[[VirtualLoop], Coroutine[Any, Any, ResultT]]) -> ResultT:
    """Runs a coroutine on a loop of its own, and ends what it left."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(make(loop))
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()
