"""Pipelines run in threads, some of which are used again: none waits for a thread, none is left when its model is gone."""

from __future__ import annotations

import contextvars
import gc
import threading
import weakref
from collections.abc import Callable

import pytest

from sixfold.core.batching.pipeline_threads import PipelineThreads

Threads = list[threading.Thread]


def noting(found: Threads) -> Callable[[], None]:
    return lambda: found.append(threading.current_thread())


def at_once(threads: PipelineThreads, count: int) -> Threads:
    """The threads of so many pipelines that run at the same time."""
    found, together = Threads(), threading.Barrier(count)

    def task() -> None:
        found.append(threading.current_thread())
        together.wait(20.0)  # passes when all are there

    ends = [threads.run(task) for _ in range(count)]
    assert all(end.wait(20.0) for end in ends)
    assert not together.broken
    return found


def test_one_after_another_has_the_same_thread() -> None:
    threads, found = PipelineThreads(max_kept=1), Threads()
    for _ in range(5):
        assert threads.run(noting(found)).wait(20.0)
    assert len(set(found)) == 1


def test_none_waits_for_the_thread_of_another_and_only_so_many_are_kept() -> None:
    threads = PipelineThreads(max_kept=3)
    first = at_once(threads, 8)
    assert len(set(first)) == 8
    again = at_once(threads, 8)
    kept = set(first) & set(again)
    assert len(kept) == 3
    for thread in set(first) - kept:
        thread.join(20.0)
        assert not thread.is_alive()
    assert set(at_once(threads, 3)) == kept


def test_none_is_kept_by_default() -> None:
    threads = PipelineThreads()
    first = at_once(threads, 2)
    for thread in first:
        thread.join(20.0)
        assert not thread.is_alive()
    assert not set(at_once(threads, 2)) & set(first)


def test_the_thread_that_was_free_last_is_taken_first() -> None:
    threads, door, found = PipelineThreads(max_kept=2), threading.Event(), Threads()
    held = threads.run(lambda: waiting(door))
    assert threads.run(noting(found)).wait(20.0)
    door.set()
    assert held.wait(20.0)
    later = Threads()
    assert threads.run(noting(later)).wait(20.0)
    assert later != found, "the other one became free after it"


def waiting(door: threading.Event) -> None:
    door.wait(20.0)


class Held:
    """What a pipeline holds."""


@pytest.mark.parametrize("max_kept", [0, 1])
def test_what_a_pipeline_held_is_free_when_it_is_over(max_kept: int) -> None:
    threads = PipelineThreads(max_kept)
    held = Held()
    gone = weakref.ref(held)

    def task(held: Held = held) -> None:
        assert held is not None

    del held
    over = threads.run(task)
    del task
    assert over.wait(20.0)
    assert gone() is None


def test_nothing_of_a_context_goes_on_to_the_next_pipeline() -> None:
    threads = PipelineThreads(max_kept=1)
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    seen: list[int] = []

    def task() -> None:
        seen.append(variable.get())
        variable.set(1)

    for _ in range(2):
        assert threads.run(task).wait(20.0)
    assert seen == [0, 0]


@pytest.mark.parametrize("max_kept", [0, 1])
def test_an_error_that_comes_out_is_logged_and_the_thread_goes_on(
    max_kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    threads, found = PipelineThreads(max_kept), Threads()

    def bad() -> None:
        found.append(threading.current_thread())
        raise ValueError("of a bug")

    assert threads.run(bad).wait(20.0)
    assert "of a bug" in caplog.text
    assert threads.run(noting(found)).wait(20.0)
    assert (found[0] is found[1]) == bool(max_kept)


def test_all_threads_end_when_nobody_needs_them() -> None:
    threads, door, begun, found = PipelineThreads(max_kept=2), threading.Event(), threading.Event(), Threads()

    def busy() -> None:
        found.append(threading.current_thread())
        begun.set()
        door.wait(20.0)

    over = threads.run(busy)
    assert begun.wait(20.0)
    assert threads.run(noting(found)).wait(20.0)
    del threads
    gc.collect()
    found[1].join(20.0)
    assert not found[1].is_alive()
    assert not over.is_set(), "a pipeline that runs is not broken off"
    door.set()
    found[0].join(20.0)
    assert not found[0].is_alive()
