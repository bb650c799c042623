"""Work for the device thread is done there, once, in order; or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest

from sixfold.plugins.llm.device_inbox import DeviceInbox, InboxClosed


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_work_is_done_in_order_by_whoever_runs_the_inbox() -> None:
    inbox, done, woken = DeviceInbox(), list[int](), list[bool]()
    inbox.attach(lambda: woken.append(True))
    futures = [inbox.post(partial(done.append, n)) for n in range(3)]
    assert not done
    assert inbox.run()
    assert not inbox.run()
    assert done == [0, 1, 2]
    assert len(woken) == 3
    assert all(future.done() for future in futures)


def test_what_work_posts_waits_for_the_next_turn() -> None:
    inbox, done = DeviceInbox(), list[str]()
    inbox.post(lambda: inbox.post(lambda: done.append("later")))
    inbox.run()
    assert not done
    inbox.run()
    assert done == ["later"]


def test_an_error_of_the_work_is_its_callers() -> None:
    inbox, posted, errors = DeviceInbox(), threading.Event(), list[BaseException]()
    inbox.attach(posted.set)

    def call() -> None:
        with pytest.raises(ZeroDivisionError) as caught:
            inbox.call(lambda: 1 // 0, 30)
        errors.append(caught.value)

    thread = in_thread(call)
    assert posted.wait(30)
    inbox.run()
    thread.join(30)
    assert len(errors) == 1


def test_work_that_nobody_waits_for_any_more_is_not_done() -> None:
    inbox, done = DeviceInbox(), list[int]()
    with pytest.raises(InboxClosed, match="no time"):
        inbox.call(lambda: done.append(1), 0.01)
    inbox.run()
    assert not done


def test_closing_ends_all_waiting() -> None:
    inbox, posted, closed = DeviceInbox(), threading.Event(), list[bool]()
    inbox.attach(posted.set)

    def call() -> None:
        with pytest.raises(InboxClosed, match="closed"):
            inbox.call(lambda: None, 30)
        closed.append(True)

    thread = in_thread(call)
    assert posted.wait(30)
    inbox.close()
    thread.join(30)
    assert closed
    with pytest.raises(InboxClosed, match="closed"):
        inbox.call(lambda: None, 30)
