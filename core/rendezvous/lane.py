"""A lane computes calls beside the device thread: decoding the finished ones must not hold up the steps of the others.

Equal calls that wait at the same time share one forward. On a GPU a lane has a stream of its own.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import torch

from sixfold.core.rendezvous.calls import ModuleCall
from sixfold.core.rendezvous.memory import free_memory, is_out_of_memory
from sixfold.core.rendezvous.merge import merge, split
from sixfold.core.rendezvous.streams import current_stream, hand_over, new_stream
from sixfold.core.runtime.devices import use_device

_log = logging.getLogger(__name__)


class Lane:
    """A thread that computes calls, oldest first, with what has its key.

    Args:
        name: Of the thread.
        device: Where the modules are.
        num_threads: CPU threads of its forwards.
        max_units: Most work of a merged forward; a larger single call runs alone.
    """

    def __init__(self, name: str, device: torch.device, *, num_threads: int = 1, max_units: int = 1 << 16) -> None:
        self._device = device
        self._num_threads = num_threads
        self._max_units = max_units
        self._jobs: deque[tuple[ModuleCall, Future[Any], Any]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.num_calls = 0  # that were answered, as of the other two
        self.num_forwards = 0
        self.num_unmerged = 0  # of both: calls that never share a forward
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Calls that no forward has taken yet. [any thread]"""
        return len(self._jobs)

    def submit(self, call: ModuleCall) -> Future[Any]:
        """Computes the call soon. Its arguments must be ready on the caller's current stream. [any thread]"""
        future: Future[Any] = Future()
        stream = current_stream(self._device)
        with self._changed:
            if self._closed:
                raise RuntimeError("the lane is closed")
            self._jobs.append((call, future, stream))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Fails what waits and ends the thread."""
        with self._changed:
            self._closed = True
            for _call, future, _stream in self._jobs:
                future.cancel()
            self._jobs.clear()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(self._num_threads)
        use_device(str(self._device))
        own = new_stream(self._device) if self._device.type == "cuda" else None
        with torch.no_grad():
            while jobs := self._take():
                self._compute(jobs, own)

    def _take(self) -> list[tuple[ModuleCall, Future[Any], Any]]:
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            taken: list[tuple[ModuleCall, Future[Any], Any]] = []
            left: deque[tuple[ModuleCall, Future[Any], Any]] = deque()
            units = 0
            for job in self._jobs:
                fits = not taken or (job[0].key == taken[0][0].key and units + job[0].units <= self._max_units)
                if not fits:
                    left.append(job)
                elif job[1].set_running_or_notify_cancel():
                    taken.append(job)
                    units += job[0].units
            self._jobs = left
        return taken or ([] if self._closed else self._take())

    def _compute(self, jobs: Sequence[tuple[ModuleCall, Future[Any], Any]], own: Any) -> None:
        """Fills the futures; what fails together is tried alone."""
        try:
            answers = self._forward([call for call, _, _ in jobs], [stream for _, _, stream in jobs], own)
        except Exception as error:  # the border between the core and a model's code
            if is_out_of_memory(error):
                error = free_memory(error, self._device)
            if len(jobs) == 1:
                jobs[0][1].set_exception(error)
                return
            _log.warning("a merged call in a lane failed (%s); each runs alone", type(error).__name__)
        else:
            self.num_forwards += 1
            self.num_calls += len(jobs)
            self.num_unmerged += not jobs[0][0].rules.merges
            for (_, future, _), answer in zip(jobs, answers, strict=True):
                future.set_result(answer)
            return
        for job in jobs:
            self._compute([job], own)

    def _forward(self, calls: Sequence[ModuleCall], streams: Sequence[Any], own: Any) -> list[Any]:
        if own is None:
            return split(calls[0].function(**merge(calls)), calls)
        for call, stream in zip(calls, streams, strict=True):
            hand_over(call.arguments, source=stream, target=own)
        with torch.cuda.stream(own):
            answers = split(calls[0].function(**merge(calls)), calls)
        own.synchronize()  # of this thread alone: the steps go on
        for answer, stream in zip(answers, streams, strict=True):
            hand_over(answer, source=own, target=stream, wait=False)
        return answers
