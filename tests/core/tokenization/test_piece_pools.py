"""Both pools with their real workers: what `PiecePool` promises, whatever the workers are."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from sixfold.core.errors import InvalidRequest, NotReady, QueueFull, StepFailed, WorkerDied
from sixfold.core.tokenization.pool import PieceDone, PiecePool, ThreadPiecePool
from sixfold.core.tokenization.processes import ProcessPiecePool

TIMEOUT_S = 60.0  # of a wait that normally takes milliseconds: only a broken pool reaches it

Pool = PiecePool[int, int]


def square(number: int) -> int:
    """The work of these tests; some numbers are bad."""
    if number == -1:
        raise InvalidRequest("negative", param="input")
    if number == -2:
        raise RuntimeError("a mistake in the plugin")
    return number * number


def make_square() -> Callable[[int], int]:
    return square


def kill_own_process(number: int) -> int:
    """The work of a decoder that -1 makes crash."""
    if number == -1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def make_kill_own_process() -> Callable[[int], int]:
    return kill_own_process


def fail_to_start() -> Callable[[int], int]:
    raise RuntimeError("no such tokenizer")


class Inbox:
    """Receives what a pool delivers and lets a test wait for it."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[PieceDone[int]] = SimpleQueue()

    def deliver(self, done: PieceDone[int]) -> None:
        self.queue.put(done)

    def next(self) -> PieceDone[int]:
        return self.queue.get(timeout=TIMEOUT_S)

    def until_last(self) -> list[PieceDone[int]]:
        received = [self.next()]
        while not received[-1].is_last:
            received.append(self.next())
        return received


@pytest.fixture(scope="module", autouse=True)
def importable_tests() -> Iterator[None]:
    """Spawned workers get the parent's sys.path and import this file by the name that pytest gave it."""
    root = Path(__file__).parents[len(__name__.split(".")) - 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(root)])
        yield


@pytest.fixture(scope="module", params=["threads", "processes"])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    made: Pool
    if request.param == "threads":
        made = ThreadPiecePool(square, num_workers=3, max_pending_pieces=2000)
    else:
        made = ProcessPiecePool(make_square, num_workers=2, max_pending_pieces=2000)
    yield made
    made.close()


def test_many_jobs_at_once_get_each_result_once_and_in_order(pool: Pool) -> None:
    inboxes = [Inbox() for _job in range(8)]
    for index, inbox in enumerate(inboxes):
        pool.submit(f"job-{index}", range(index * 20 + 1), inbox.deliver)
    for index, inbox in enumerate(inboxes):
        received = inbox.until_last()
        assert [done.index for done in received] == list(range(index * 20 + 1))
        assert [done.result for done in received] == [number * number for number in range(index * 20 + 1)]


def test_bad_input_fails_its_piece_alone_and_keeps_its_error(pool: Pool) -> None:
    inbox = Inbox()
    pool.submit("job", (1, -1, 3), inbox.deliver)
    first, bad, last = inbox.until_last()
    assert isinstance(bad.error, InvalidRequest)
    assert (bad.error.message, bad.error.param) == ("negative", "input")
    assert (first.result, last.result) == (1, 9)


def test_a_mistake_in_the_work_fails_the_piece_without_its_details(pool: Pool) -> None:
    inbox = Inbox()
    pool.submit("job", (-2,), inbox.deliver)
    error = inbox.next().error
    assert isinstance(error, StepFailed)
    assert "mistake" not in error.message


def test_a_job_id_is_free_again_after_its_last_result(pool: Pool) -> None:
    for _time in range(2):
        inbox = Inbox()
        pool.submit("again", (3,), inbox.deliver)
        assert inbox.next().result == 9
        pool.cancel("again")  # a finished job is ignored; and the deliver call has ended after it


def test_a_small_job_overtakes_a_huge_one() -> None:
    gate = threading.Event()
    order: list[str] = []
    done = threading.Event()

    def work(piece: str) -> str:
        gate.wait(TIMEOUT_S)
        order.append(piece)
        return piece

    pool = ThreadPiecePool(work, num_workers=1, max_pending_pieces=2000)
    pool.submit("huge", ["huge"] * 1000, lambda _done: None)
    pool.submit("small", ["small"], lambda _done: done.set())
    gate.set()
    assert done.wait(TIMEOUT_S)
    pool.close()
    assert order.index("small") <= 2  # the piece in work, and at most one turn of the huge job


def test_nothing_is_delivered_after_cancel_returns() -> None:
    delivering = threading.Event()
    go_on = threading.Event()
    received: list[int] = []

    def deliver(done: PieceDone[int]) -> None:
        delivering.set()
        go_on.wait(TIMEOUT_S)
        received.append(done.index)

    pool = ThreadPiecePool(square, num_workers=2, max_pending_pieces=100)
    pool.submit("job", range(50), deliver)
    assert delivering.wait(TIMEOUT_S)
    canceller = threading.Thread(target=pool.cancel, args=("job",))
    canceller.start()
    assert canceller.is_alive()  # waits for the call that is under way
    go_on.set()
    canceller.join(TIMEOUT_S)
    assert received == [0]
    pool.close()
    assert received == [0]


def test_a_receiver_may_cancel_its_own_job() -> None:
    received: list[int] = []
    pool = ThreadPiecePool(square, num_workers=2, max_pending_pieces=100)

    def deliver(done: PieceDone[int]) -> None:
        received.append(done.index)
        pool.cancel("job")

    pool.submit("job", range(50), deliver)
    inbox = Inbox()
    pool.submit("next", range(50), inbox.deliver)
    inbox.until_last()
    pool.close()
    assert received == [0]
    assert pool.num_pending_pieces == 0


def test_a_receiver_that_raises_costs_its_job_and_no_worker(caplog: pytest.LogCaptureFixture) -> None:
    pool = ThreadPiecePool(square, num_workers=1, max_pending_pieces=100)

    def deliver(_done: PieceDone[int]) -> None:
        raise RuntimeError("broken receiver")

    pool.submit("broken", range(50), deliver)
    inbox = Inbox()
    pool.submit("next", (4,), inbox.deliver)
    assert inbox.next().result == 16
    pool.close()
    assert "the receiver of request broken failed" in caplog.text


def test_a_full_pool_refuses_and_takes_again_when_there_is_room() -> None:
    gate = threading.Event()

    def work(number: int) -> int:
        gate.wait(TIMEOUT_S)
        return number

    pool = ThreadPiecePool(work, num_workers=1, max_pending_pieces=2)
    inbox = Inbox()
    pool.submit("first", (1, 2), inbox.deliver)
    with pytest.raises(QueueFull):
        pool.submit("second", (3,), inbox.deliver)
    gate.set()
    inbox.until_last()
    pool.cancel("first")  # returns after the last deliver call
    pool.submit("second", (3,), inbox.deliver)
    assert inbox.next().result == 3
    pool.close()


def test_a_closed_pool_is_not_ready() -> None:
    pool = ThreadPiecePool(square, num_workers=1, max_pending_pieces=2)
    pool.close()
    pool.close()
    with pytest.raises(NotReady):
        pool.submit("late", (1,), lambda _done: None)


class Panic(BaseException):
    """As a panic of a Rust extension arrives in Python."""


def test_a_thread_that_panics_is_replaced_and_its_piece_done_again(caplog: pytest.LogCaptureFixture) -> None:
    panics = [Panic(), Panic(), Panic()]  # one for the first piece that looks, two for the piece 13

    def work(number: int) -> int:
        if number == 13 and panics:
            raise panics.pop()
        if number == 5 and len(panics) == 3:
            raise panics.pop()
        return number

    pool = ThreadPiecePool(work, num_workers=1, max_pending_pieces=100)
    inbox = Inbox()
    pool.submit("job", (5, 13, 14), inbox.deliver)
    once, twice, after = inbox.until_last()
    pool.close()
    assert once.result == 5
    assert isinstance(twice.error, StepFailed)
    assert after.result == 14
    assert caplog.text.count("is replaced") == 3


def test_a_killed_process_is_replaced_and_the_piece_that_kills_it_twice_fails_alone() -> None:
    pool = ProcessPiecePool(make_kill_own_process, num_workers=1, max_pending_pieces=100)
    inbox = Inbox()
    pool.submit("job", (1, -1, 3), inbox.deliver)
    first, killer, last = inbox.until_last()
    assert isinstance(killer.error, StepFailed)
    assert (first.result, last.result) == (1, 3)
    pid = pool.worker_pids[0]
    os.kill(pid, signal.SIGKILL)  # between two pieces: nobody's fault, nothing fails
    pool.submit("next", (4,), inbox.deliver)
    assert inbox.next().result == 4
    assert pool.worker_pids[0] != pid
    pool.close()


def test_a_process_that_cannot_start_fails_pieces_with_an_error_that_allows_a_retry() -> None:
    pool = ProcessPiecePool(fail_to_start, num_workers=1, max_pending_pieces=100)
    inbox = Inbox()
    pool.submit("job", (1,), inbox.deliver)
    error = inbox.next().error
    pool.close()
    assert isinstance(error, WorkerDied)
    assert error.retryable


def wait_forever(number: int) -> int:
    threading.Event().wait()
    return number


def make_wait_forever() -> Callable[[int], int]:
    return wait_forever


def test_closing_ends_a_process_that_hangs() -> None:
    pool = ProcessPiecePool(make_wait_forever, num_workers=1, max_pending_pieces=100)
    pool.submit("job", (1,), lambda _done: None)
    (pid,) = pool.worker_pids
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
