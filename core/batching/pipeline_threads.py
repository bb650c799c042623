"""Threads that run pipelines one after another: what is a thread's own (a CUDA stream, a library's workspace) is not made anew."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

_log = logging.getLogger(__name__)

_Task = tuple[Callable[[], None], threading.Event]


@dataclass(slots=True)
class _Free:
    """Threads without a task, by their mailboxes; None in one ends its thread."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    mailboxes: list[SimpleQueue[_Task | None]] = field(default_factory=list["SimpleQueue[_Task | None]"])
    closed: bool = False


class PipelineThreads:
    """As many threads as pipelines run at once. Who was free last is taken first, so that few have much to keep.

    A pipeline never waits for a thread: where none is free, one is made. The threads end when this object is collected;
    they are daemons, so that a pipeline that hangs does not hold up the end of the process. Thread-safe.
    """

    def __init__(self) -> None:
        self._free = _Free()
        self._end = weakref.finalize(self, _dismiss, self._free)
        self._end.atexit = False

    def run(self, task: Callable[[], None]) -> threading.Event:
        """Runs a task now; the event is set when it is over and nothing of it is held any more.

        Args:
            task: Handles its own errors: one that comes out of it is only logged.
        """
        done = threading.Event()
        with self._free.lock:
            mailbox = self._free.mailboxes.pop() if self._free.mailboxes else None
        if mailbox is None:
            mailbox = SimpleQueue()
            threading.Thread(target=_work, args=(mailbox, self._free), name="pipeline", daemon=True).start()
        mailbox.put((task, done))
        return done


def _work(mailbox: SimpleQueue[_Task | None], free: _Free) -> None:
    while (given := mailbox.get()) is not None:
        task, done = given
        try:
            task()
        except BaseException:
            _log.exception("a pipeline's thread got an error that the pipeline should have had")
        del given, task  # what the pipeline held is freed before anyone is told that it is over
        with free.lock:
            free.mailboxes.append(mailbox)
            goes_on = not free.closed
        done.set()
        if not goes_on:
            return


def _dismiss(free: _Free) -> None:
    with free.lock:
        free.closed = True
        for mailbox in free.mailboxes:
            mailbox.put(None)
