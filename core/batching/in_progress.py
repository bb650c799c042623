"""What a replica's threads are at, so that somebody else sees what does not end. Nothing here can stop them."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from contextlib import contextmanager


class InProgress:
    """Work between its begin and its end. Each method may be called by any thread, `look` by one."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._running: dict[int, str] = {}
        self._seen: dict[int, int] = {}  # how many looks ago it was seen for the first time

    @contextmanager
    def doing(self, what: str) -> Generator[None, None, None]:
        """Work for as long as the block runs.

        Args:
            what: For the log, with its article: ``a step``.
        """
        number = next(self._numbers)
        self._running[number] = what
        try:
            yield
        finally:
            del self._running[number]

    def look(self) -> tuple[str, int]:
        """What has run for the most looks, and for how many since the first that saw it; ``("", 0)`` where nothing runs.

        Looks are counted rather than seconds: those in which the whole process was stopped count for nothing.
        """
        running = self._running.copy()
        self._seen = {number: self._seen.get(number, -1) + 1 for number in running}
        if not running:
            return "", 0
        oldest = min(running)
        return running[oldest], self._seen[oldest]
