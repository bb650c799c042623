"""The pool's decisions, driven without threads: hypothesis is the scheduler, tasks in a list are the workers."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sixfold.core.errors import InvalidRequest, PayloadTooLarge, QueueFull, RequestError, StepFailed
from sixfold.core.tokenization.piece_queue import PieceJob, PieceQueue, PieceTask, Success
from sixfold.core.tokenization.pieces import PieceDone

MAX_PENDING_PIECES = 12

Queue = PieceQueue[int, int]
Task = PieceTask[int, int]


def deliver_ready(queue: Queue, job: PieceJob[int, int], thread_id: int = 1) -> None:
    while (done := queue.begin_delivery(job, thread_id)) is not None:
        job.deliver(done)
        queue.end_delivery(job)


def take(queue: Queue) -> Task:
    task = queue.take()
    assert task is not None
    return task


def test_jobs_take_turns_piece_by_piece() -> None:
    queue = Queue(num_workers=1, max_pending_pieces=100)
    queue.add("huge", range(50), lambda _done: None)
    take(queue)
    queue.add("small", (0,), lambda _done: None)
    queue.add("middle", range(2), lambda _done: None)
    order = [take(queue).job.job_id for _turn in range(6)]
    assert order == ["huge", "small", "middle", "huge", "middle", "huge"]


def test_the_first_result_is_delivered_before_the_last_piece_is_taken() -> None:
    queue = Queue(num_workers=1, max_pending_pieces=100)
    received: list[PieceDone[int]] = []
    queue.add("job", range(50), received.append)
    task = take(queue)
    queue.complete(task, Success(7), elapsed_s=0.1)
    deliver_ready(queue, task.job)
    assert [(done.index, done.result, done.is_last) for done in received] == [(0, 7, False)]


def test_a_full_queue_takes_nothing_of_a_job_and_tells_when_to_come_back() -> None:
    queue = Queue(num_workers=2, max_pending_pieces=10)
    queue.add("first", range(8), lambda _done: None)
    queue.complete(take(queue), Success(0), elapsed_s=0.5)
    with pytest.raises(QueueFull) as full:
        queue.add("second", range(6), lambda _done: None)
    assert full.value.retry_after_s == pytest.approx(4 * 0.5 / 2)
    assert queue.job_ids == ("first",)
    assert queue.num_pending_pieces == 8


def test_a_job_that_never_fits_is_told_that_waiting_does_not_help() -> None:
    queue = Queue(num_workers=1, max_pending_pieces=10)
    with pytest.raises(PayloadTooLarge, match="11 parts; at most 10"):
        queue.add("job", range(11), lambda _done: None)


def test_a_live_job_id_is_not_taken_twice_and_a_cancelled_one_is() -> None:
    queue = Queue(num_workers=1, max_pending_pieces=10)
    queue.add("job", (0,), lambda _done: None)
    with pytest.raises(ValueError, match="job"):
        queue.add("job", (0,), lambda _done: None)
    queue.drop("job")
    queue.add("job", (0,), lambda _done: None)
    assert queue.num_pending_pieces == 1


def test_a_piece_that_crashes_its_worker_once_is_done_again_before_anything_else() -> None:
    queue = Queue(num_workers=2, max_pending_pieces=100)
    queue.add("victim", range(3), lambda _done: None)
    queue.add("other", range(3), lambda _done: None)
    task = take(queue)
    queue.crash(task)
    assert take(queue) == task


def test_a_piece_that_crashes_its_worker_twice_fails_alone() -> None:
    queue = Queue(num_workers=1, max_pending_pieces=100)
    received: list[PieceDone[int]] = []
    queue.add("job", range(2), received.append)
    queue.crash(take(queue))
    task = take(queue)
    queue.crash(task)
    queue.complete(take(queue), Success(1), elapsed_s=0.1)
    deliver_ready(queue, task.job)
    assert isinstance(received[0].error, StepFailed)
    assert (received[1].index, received[1].result, received[1].is_last) == (1, 1, True)
    with pytest.raises(StepFailed, match="2 times"):
        _ = received[0].result


def test_two_threads_never_deliver_for_one_job_at_a_time() -> None:
    queue = Queue(num_workers=2, max_pending_pieces=100)
    queue.add("job", range(2), lambda _done: None)
    tasks = [take(queue), take(queue)]
    for task in tasks:
        queue.complete(task, Success(0), elapsed_s=0.1)
    assert queue.begin_delivery(tasks[0].job, thread_id=1) is not None
    assert queue.begin_delivery(tasks[0].job, thread_id=2) is None
    queue.end_delivery(tasks[0].job)
    assert queue.begin_delivery(tasks[0].job, thread_id=2) is not None


class AnyOrder(RuleBasedStateMachine):
    """Random arrivals, completions in any order, crashes, cancels and slow receivers."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = Queue(num_workers=4, max_pending_pieces=MAX_PENDING_PIECES)
        self.num_jobs = 0
        self.jobs: dict[str, PieceJob[int, int]] = {}  # live ones
        self.num_pieces: dict[str, int] = {}
        self.received: dict[str, list[PieceDone[int]]] = {}
        self.held: list[Task] = []
        self.delivering: list[tuple[PieceJob[int, int], PieceDone[int]]] = []
        self.turns_left: dict[str, int] = {}  # how many takes of others a waiting job may still see
        self.crashes: dict[tuple[str, int], int] = {}

    def waiting_ids(self) -> list[str]:
        return [job_id for job_id, job in self.jobs.items() if job.todo]

    def forget(self, job_id: str) -> None:
        del self.jobs[job_id]
        self.turns_left.pop(job_id, None)

    @rule(num_pieces=st.integers(1, MAX_PENDING_PIECES + 1))
    def submit(self, num_pieces: int) -> None:
        job_id = f"job-{self.num_jobs}"
        self.num_jobs += 1
        received: list[PieceDone[int]] = []
        before = self.queue.num_pending_pieces
        num_ahead = len(self.waiting_ids())
        try:
            self.queue.add(job_id, range(num_pieces), received.append)
        except PayloadTooLarge:
            assert num_pieces > MAX_PENDING_PIECES
        except QueueFull:
            assert before + num_pieces > MAX_PENDING_PIECES
            assert self.queue.num_pending_pieces == before
        else:
            self.received[job_id] = received
            self.num_pieces[job_id] = num_pieces
            self.jobs[job_id] = self.queue._jobs[job_id]  # pyright: ignore[reportPrivateUsage]  # to drive deliveries
            self.turns_left[job_id] = num_ahead

    @precondition(lambda self: len(self.held) < 4)
    @rule()
    def worker_takes(self) -> None:
        waiting = self.waiting_ids()
        task = self.queue.take()
        assert (task is not None) == bool(waiting)
        if task is None:
            return
        assert task.job.job_id in waiting
        self.held.append(task)
        is_redo = (task.job.job_id, task.index) in self.crashes
        for job_id in waiting:
            if job_id == task.job.job_id:
                self.turns_left[job_id] = len(waiting) - 1
            elif not is_redo:
                self.turns_left[job_id] = self.turns_left.get(job_id, len(waiting)) - 1
                assert self.turns_left[job_id] >= 0, "a job waited for a second piece of another"

    @precondition(lambda self: self.held)
    @rule(data=st.data(), fails=st.booleans())
    def worker_completes(self, data: st.DataObject, fails: bool) -> None:
        task = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        outcome: Success[int] | RequestError = InvalidRequest("bad") if fails else Success(task.piece)
        self.queue.complete(task, outcome, elapsed_s=0.01)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def worker_crashes(self, data: st.DataObject) -> None:
        task = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        if task.job.job_id in self.jobs:
            key = (task.job.job_id, task.index)
            self.crashes[key] = self.crashes.get(key, 0) + 1
            assert self.crashes[key] <= 2, "a piece was tried a third time"
        self.queue.crash(task)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def delivery_begins(self, data: st.DataObject) -> None:
        job = self.jobs[data.draw(st.sampled_from(sorted(self.jobs)))]
        done = self.queue.begin_delivery(job, thread_id=1)
        if done is not None:
            assert all(other is not job for other, _done in self.delivering)
            self.delivering.append((job, done))

    @precondition(lambda self: self.delivering)
    @rule(data=st.data())
    def delivery_ends(self, data: st.DataObject) -> None:
        job, done = self.delivering.pop(data.draw(st.integers(0, len(self.delivering) - 1)))
        job.deliver(done)
        self.queue.end_delivery(job)
        if done.is_last and self.jobs.get(job.job_id) is job:
            self.forget(job.job_id)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.queue.drop(job_id)
        assert job is not None and job is self.jobs[job_id]
        if job.deliverer is None:
            assert self.queue.begin_delivery(job, thread_id=1) is None
        self.forget(job_id)

    @invariant()
    def results_come_in_order_and_once(self) -> None:
        for job_id, received in self.received.items():
            assert [done.index for done in received] == list(range(len(received)))
            assert [done.index for done in received if done.is_last] in ([], [self.num_pieces[job_id] - 1])
            assert all(done.error is not None or done.result == done.index for done in received)

    @invariant()
    def pending_pieces_are_those_of_live_jobs_and_bounded(self) -> None:
        assert self.queue.num_pending_pieces == sum(job.num_pending for job in self.jobs.values())
        assert 0 <= self.queue.num_pending_pieces <= MAX_PENDING_PIECES

    @invariant()
    def the_queue_knows_live_jobs_only(self) -> None:
        assert set(self.queue.job_ids) == set(self.jobs)

    def teardown(self) -> None:
        """Whatever happened, workers that go on deliver every live job in full."""
        for job, done in self.delivering:
            job.deliver(done)
            self.queue.end_delivery(job)
        for task in self.held:
            self.queue.complete(task, Success(task.piece), elapsed_s=0.01)
        while (waiting := self.queue.take()) is not None:
            self.queue.complete(waiting, Success(waiting.piece), elapsed_s=0.01)
        for job_id, job in self.jobs.items():
            deliver_ready(self.queue, job)
            assert len(self.received[job_id]) == self.num_pieces[job_id]
        assert self.queue.num_pending_pieces == 0
        assert self.queue.job_ids == ()
        self.results_come_in_order_and_once()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
