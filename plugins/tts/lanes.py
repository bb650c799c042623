"""Computes sentences beside each other, each in its own thread, for networks that take only one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_Samples = NDArray[np.float32]


class Run(Protocol):
    """One computation of a network that can be told to stop."""

    def __call__(self) -> _Samples:
        """Computes; called in a lane's thread."""
        ...

    def stop(self) -> None:
        """Makes the computation end soon, with an exception. [any thread]"""
        ...


class Lanes:
    """A fixed number of threads, each with at most one computation.

    Args:
        num_lanes: Threads.
    """

    def __init__(self, num_lanes: int) -> None:
        self.num_lanes = num_lanes
        self._executor = ThreadPoolExecutor(num_lanes, thread_name_prefix="lane")
        self._something = threading.Event()

    def start(self, run: Callable[[], _Samples]) -> Future[_Samples]:
        """Queues a computation; its end ends a `wait`."""
        future = self._executor.submit(run)
        future.add_done_callback(lambda _future: self._something.set())
        return future

    def wait(self, timeout_s: float) -> None:
        """Returns when a computation has ended or `interrupt` was called since the last wait, at the latest after a time."""
        self._something.wait(timeout_s)
        # Only here: the caller looks at the futures after this, so an end that comes later ends the next wait.
        self._something.clear()

    def interrupt(self) -> None:
        """Ends the present or the next wait. [any thread]"""
        self._something.set()

    def close(self) -> None:
        """Waits for what runs; nothing starts any more."""
        self._executor.shutdown(wait=True, cancel_futures=True)
