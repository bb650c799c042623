"""Pipelines run in threads that are used again: none waits for a thread, none is left when its model is gone."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import pytest

from sixfold.core.batching.pipeline_threads import PipelineThreads


def noting(found: list[threading.Thread]) -> Callable[[], None]:
    return lambda: found.append(threading.current_thread())


def test_one_after_another_has_the_same_thread() -> None:
    threads, found = PipelineThreads(), list[threading.Thread]()
    for _ in range(5):
        assert threads.run(noting(found)).wait(20.0)
    assert len(set(found)) == 1


def test_none_waits_for_the_thread_of_another() -> None:
    threads, together = PipelineThreads(), threading.Barrier(8)
    ends = [threads.run(lambda: together.wait(20.0)) for _ in range(8)]  # passes when all eight are there
    assert all(end.wait(20.0) for end in ends)
    assert not together.broken


def test_the_thread_that_was_free_last_is_taken_first() -> None:
    threads, door, found = PipelineThreads(), threading.Event(), list[threading.Thread]()
    held = threads.run(lambda: door.wait(20.0))
    assert threads.run(noting(found)).wait(20.0)
    door.set()
    assert held.wait(20.0)
    later = list[threading.Thread]()
    assert threads.run(noting(later)).wait(20.0)
    assert later != found, "the other one became free after it"


class Held:
    """What a pipeline holds."""


def test_what_a_pipeline_held_is_free_when_it_is_over() -> None:
    threads = PipelineThreads()
    held = Held()
    gone = weakref.ref(held)

    def task(held: Held = held) -> None:
        assert held is not None

    del held
    over = threads.run(task)
    del task
    assert over.wait(20.0)
    assert gone() is None


def test_an_error_that_comes_out_is_logged_and_the_thread_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    threads, found = PipelineThreads(), list[threading.Thread]()

    def bad() -> None:
        found.append(threading.current_thread())
        raise ValueError("of a bug")

    assert threads.run(bad).wait(20.0)
    assert "of a bug" in caplog.text
    assert threads.run(noting(found)).wait(20.0)
    assert found[0] is found[1]


def test_all_threads_end_when_nobody_needs_them() -> None:
    threads, door, found = PipelineThreads(), threading.Event(), list[threading.Thread]()
    assert threads.run(noting(found)).wait(20.0)

    def busy() -> None:
        noting(found)()
        door.wait(20.0)

    free_one = threading.Event()
    threads.run(lambda: free_one.wait(20.0))  # takes the free thread, so that the next has one of its own
    over = threads.run(busy)
    free_one.set()
    del threads
    gc.collect()
    found[0].join(20.0)
    assert not found[0].is_alive()
    assert not over.is_set(), "a pipeline that runs is not broken off"
    door.set()
    found[1].join(20.0)
    assert not found[1].is_alive()
