"""Lets other threads have small pieces of work done by the device thread, between its steps."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

T = TypeVar("T")


class InboxClosed(Exception):
    """The device thread takes no more work, or was too busy to do this piece in time."""


class DeviceInbox:
    """Work for the device thread, in order. Each piece must take milliseconds: a step waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._wake: Callable[[], None] = lambda: None
        self._is_closed = False

    def attach(self, wake: Callable[[], None]) -> None:
        """Gives the inbox what makes the device thread call `run` soon."""
        self._wake = wake

    def post(self, work: Callable[[], T]) -> Future[T]:
        """Has the work done some time, without waiting; not at all if the inbox is closed. [any thread]"""
        future: Future[T] = Future()
        with self._lock:
            if self._is_closed:
                future.cancel()
                return future
            self._waiting.append((future, work))
        self._wake()
        return future

    def call(self, work: Callable[[], T], timeout_s: float) -> T:
        """Has the work done and returns its result, or raises what it raised. [any thread but the device's]

        Raises:
            InboxClosed: It was not done, and will not be.
        """
        future = self.post(work)
        try:
            return future.result(timeout_s)
        except CancelledError:
            raise InboxClosed("the model is being closed") from None
        except TimeoutError:
            if future.cancel():
                raise InboxClosed(f"the device had no time for it within {timeout_s:g} s") from None
            return future.result()  # it is being done at this moment, or raised this itself

    def run(self) -> bool:
        """Does what has come in so far; says whether there was anything. [device]"""
        count = len(self._waiting)  # what comes meanwhile waits for the next turn: a step must not starve
        for _ in range(count):
            future, work = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except Exception as error:  # belongs to the thread that waits for it
                    future.set_exception(error)
        return count > 0

    def close(self) -> None:
        """Does what is left undone no more. [device]"""
        with self._lock:
            self._is_closed = True
        while self._waiting:
            self._waiting.popleft()[0].cancel()
