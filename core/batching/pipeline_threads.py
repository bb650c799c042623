"""Threads that run pipelines one after another: a CUDA stream and a library's workspace, which are a thread's, are kept."""

from __future__ import annotations

import contextvars
import logging
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What a thread is to do.

    Attributes:
        run: Does it.
        over: Set when it is done and nothing of it is held any more.
    """

    run: Callable[[], None]
    over: threading.Event = field(default_factory=threading.Event)


Mailbox = SimpleQueue["_Task | None"]
"""Of a thread that is kept; None ends it."""


@dataclass(slots=True)
class _Kept:
    """The threads that are kept, shared with them: they must not know `PipelineThreads`, whose collection ends them.

    Attributes:
        lock: Guards the others; reentrant, as a collection may come while it is held.
        free: Of those without a task.
        num_threads: With and without.
        closed: They end when they are done.
    """

    lock: threading.RLock = field(default_factory=threading.RLock)
    free: list[Mailbox] = field(default_factory=list[Mailbox])
    num_threads: int = 0
    closed: bool = False


class PipelineThreads:
    """As many threads as pipelines run at once. Who was free last is taken first, so that few have much to keep.

    A pipeline never waits for a thread: where none is free, one is made, and ends after its pipeline if enough are kept.
    Those that are kept end when this object is collected. All are daemons, so that a pipeline that hangs does not hold up
    the end of the process. Thread-safe.

    Args:
        max_kept: Threads that wait for a next pipeline. A waiting one holds what libraries keep for it: teams of threads
            on a CPU.
    """

    def __init__(self, max_kept: int = 0) -> None:
        self._max_kept = max_kept
        self._kept = _Kept()
        self._end = weakref.finalize(self, _dismiss, self._kept)
        self._end.atexit = False

    def run(self, function: Callable[[], None]) -> threading.Event:
        """Runs it now, in a context of its own; the event is set when it is over.

        Args:
            function: Handles its own errors: one that comes out of it is only logged.

        Raises:
            RuntimeError: No thread can be started.
        """
        task = _Task(run=function)
        with self._kept.lock:
            mailbox = self._kept.free.pop() if self._kept.free else None
            is_kept = mailbox is None and self._kept.num_threads < self._max_kept
            self._kept.num_threads += is_kept
        if mailbox is None:
            mailbox = Mailbox()
            work = _work if is_kept else _work_once
            try:
                threading.Thread(target=work, args=(mailbox, self._kept), name="pipeline", daemon=True).start()
            except RuntimeError:  # the system has no more
                with self._kept.lock:
                    self._kept.num_threads -= is_kept
                raise
        mailbox.put(task)
        return task.over


def _work(mailbox: Mailbox, kept: _Kept) -> None:
    while (task := mailbox.get()) is not None:
        over = task.over
        _run(task.run)
        del task  # what the pipeline held is let go before anyone is told that it is over
        with kept.lock:
            kept.free.append(mailbox)
            goes_on = not kept.closed
        over.set()
        if not goes_on:
            return


def _work_once(mailbox: Mailbox, _kept: _Kept) -> None:
    task = mailbox.get()
    assert task is not None
    over = task.over
    _run(task.run)
    del task
    over.set()


def _run(function: Callable[[], None]) -> None:
    try:
        contextvars.Context().run(function)
    except BaseException:
        _log.exception("a pipeline's thread got an error that the pipeline should have had")


def _dismiss(kept: _Kept) -> None:
    with kept.lock:
        kept.closed = True
        for mailbox in kept.free:
            mailbox.put(None)
