"""Steps that a GPU still computes while the host already lays out the next one.

The batch manager's loop calls `step` for one batch after the other. On a GPU a step only starts the work and returns; its
sequences are then *elsewhere* (`StepModel.cost` says None) until the vectors have arrived, when `collect` hands out their
outcomes. So between two batches the card waits for nothing that the host does.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sixfold.core.batching.model import DeviceLost

SequenceT = TypeVar("SequenceT")

_MAX_FLIGHTS = 2
"""One is computed, one waits behind it. More would make the requests that come next wait longer for nothing."""


class ToCome(Protocol):
    """See `VectorsToCome`."""

    @property
    def is_there(self) -> bool:
        """Whether `wait` returns at once."""
        ...

    def block(self) -> None:
        """Returns when they are there."""
        ...

    def wait(self) -> NDArray[np.float32]:
        """One row a sequence."""
        ...


@dataclass(frozen=True, slots=True)
class Flight(Generic[SequenceT]):
    """One step that was started."""

    sequences: tuple[SequenceT, ...]
    vectors: ToCome

    def block(self) -> None:
        """Returns when it has arrived.

        Raises:
            DeviceLost: The device failed on it.
        """
        with _loses_device():
            self.vectors.block()

    def has_landed(self) -> bool:
        """Whether it has arrived.

        Raises:
            DeviceLost: The device failed on it.
        """
        with _loses_device():
            return self.vectors.is_there

    def wait(self) -> NDArray[np.float32]:
        """Its vectors, one row a sequence.

        Raises:
            DeviceLost: The device failed on it.
        """
        with _loses_device():
            return self.vectors.wait()


class Flights(Generic[SequenceT]):
    """The steps under way. Used by the device thread, apart from one thread of its own that only waits.

    Args:
        wake: Makes the batch manager's loop turn, from any thread.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._under_way: deque[Flight[SequenceT]] = deque()
        self._watched: deque[ToCome] = deque()
        self._has_news = threading.Condition()
        self._is_closed = False
        self._watcher = threading.Thread(target=self._watch, name="embed-flights", daemon=True)
        self._watcher.start()

    def __len__(self) -> int:
        return len(self._under_way)

    def start(self, sequences: Sequence[SequenceT], vectors: ToCome) -> None:
        """Takes a step that was started; returns when at most two are under way.

        Raises:
            DeviceLost: The device failed on an earlier one.
        """
        self._under_way.append(Flight(tuple(sequences), vectors))
        with self._has_news:
            self._watched.append(vectors)
            self._has_news.notify()
        if len(self._under_way) > _MAX_FLIGHTS:
            self._under_way[-_MAX_FLIGHTS - 1].block()

    def check(self) -> None:
        """Waits for all that are under way. For a step that could not start: the reason may be one before it.

        Raises:
            DeviceLost: The device failed on one of them.
        """
        for flight in self._under_way:
            flight.block()

    def landed(self) -> list[Flight[SequenceT]]:
        """Takes those that have arrived, in the order of their start.

        Raises:
            DeviceLost: The device failed on one of them.
        """
        found: list[Flight[SequenceT]] = []
        while self._under_way and self._under_way[0].has_landed():
            found.append(self._under_way.popleft())
        return found

    def close(self) -> None:
        """Ends the thread, once what is under way has arrived."""
        with self._has_news:
            self._is_closed = True
            self._has_news.notify()
        self._watcher.join()
        self._under_way.clear()

    def _watch(self) -> None:
        """Wakes the loop at each arrival, since it may have nothing else to turn for."""
        while True:
            with self._has_news:
                while not self._watched and not self._is_closed:
                    self._has_news.wait()
                if not self._watched:
                    return
                vectors = self._watched.popleft()
            with contextlib.suppress(RuntimeError):  # the device thread meets the same error, and answers for it
                vectors.block()
            self._wake()


@contextlib.contextmanager
def _loses_device() -> Generator[None]:
    """What fails while a flight is waited for has failed on the device, which answers nobody any more after that."""
    try:
        yield
    except RuntimeError as error:
        raise DeviceLost(f"a step failed on the device: {error}") from error
