"""The default pool that prepares inputs beside the running steps: threads, because fast tokenizers release the GIL."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic

from sixfold.core.errors import NotReady, RequestError, StepFailed
from sixfold.core.tokenization.piece_queue import PieceJob, PieceQueue, PieceTask, Success
from sixfold.core.tokenization.pieces import PieceDone, PiecePool, PieceT, ResultT

__all__ = ["PieceDone", "PiecePool", "ThreadPiecePool"]

_logger = logging.getLogger(__name__)


class ThreadPiecePool(Generic[PieceT, ResultT]):
    """A `PiecePool` of threads: see there for what it promises.

    To give each job its own work, let the pieces be callables: ``ThreadPiecePool(operator.call, ...)``.

    A crash is an exception that is no Exception: a panic of a Rust extension arrives as one. The thread ends, a new one
    takes its place.

    Args:
        work: Prepares one piece; called in several threads at once. A RequestError it raises is delivered as it is, any
            other exception is logged and delivered as StepFailed.
        num_workers: Threads.
        max_pending_pieces: Bound on pieces that are accepted and not delivered yet.
        name: Prefix of the thread names.
    """

    def __init__(
        self,
        work: Callable[[PieceT], ResultT],
        *,
        num_workers: int,
        max_pending_pieces: int,
        name: str = "pool",
    ) -> None:
        self._work = work
        self._name = name
        self._queue: PieceQueue[PieceT, ResultT] = PieceQueue(
            num_workers=num_workers, max_pending_pieces=max_pending_pieces
        )
        self._lock = threading.Lock()  # guards the queue and the three below
        self._work_waits = threading.Condition(self._lock)
        self._delivery_ended = threading.Condition(self._lock)
        self._closed = False
        self._threads: dict[int, threading.Thread] = {}
        for worker_index in range(num_workers):
            self._start_worker(worker_index)

    @property
    def num_pending_pieces(self) -> int:
        """Pieces that are accepted and neither delivered nor dropped. [any thread]"""
        return self._queue.num_pending_pieces

    def submit(self, job_id: str, pieces: Sequence[PieceT], deliver: Callable[[PieceDone[ResultT]], None]) -> None:
        """Takes all pieces of a job, or none; see `PiecePool.submit`."""
        with self._lock:
            if self._closed:
                raise NotReady("The server is shutting down; send the request to another one or try again later.")
            self._queue.add(job_id, pieces, deliver)
            self._work_waits.notify(len(pieces))

    def cancel(self, job_id: str) -> None:
        """Drops what is left of a job; see `PiecePool.cancel`."""
        with self._lock:
            job = self._queue.drop(job_id)
            while job is not None and job.deliverer not in (None, threading.get_ident()):
                self._delivery_ended.wait()

    def close(self) -> None:
        """Drops all jobs and waits for the pieces in work; see `PiecePool.close`."""
        with self._lock:
            self._closed = True
            for job_id in self._queue.job_ids:
                self._queue.drop(job_id)
            self._work_waits.notify_all()
            threads = tuple(self._threads.values())
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def _start_worker(self, worker_index: int) -> None:
        thread = threading.Thread(
            target=self._run_worker, args=(worker_index,), name=f"{self._name}-{worker_index}", daemon=True
        )
        self._threads[worker_index] = thread
        thread.start()

    def _run_worker(self, worker_index: int) -> None:
        while (task := self._next_task()) is not None:
            started_s = time.monotonic()
            try:
                outcome = self._run_task(task)
            except BaseException as error:  # the border of the thread: a crash of any kind is redone
                self._replace_worker(worker_index, task, error)
                return
            with self._lock:
                self._queue.complete(task, outcome, elapsed_s=time.monotonic() - started_s)
            self._deliver_ready(task.job)

    def _next_task(self) -> PieceTask[PieceT, ResultT] | None:
        with self._lock:
            while not self._closed:
                if (task := self._queue.take()) is not None:
                    return task
                self._work_waits.wait()
        return None

    def _run_task(self, task: PieceTask[PieceT, ResultT]) -> Success[ResultT] | RequestError:
        try:
            return Success(self._work(task.piece))
        except RequestError as error:
            return error
        except Exception:
            _logger.exception("preparing piece %d of request %s failed", task.index, task.job.job_id)
            return StepFailed("This input could not be prepared for the model; the server's log says why.")

    def _replace_worker(self, worker_index: int, task: PieceTask[PieceT, ResultT], error: BaseException) -> None:
        _logger.error(
            "worker %s-%d crashed on piece %d of request %s and is replaced: %r",
            self._name,
            worker_index,
            task.index,
            task.job.job_id,
            error,
        )
        with self._lock:
            self._queue.crash(task)
            if not self._closed:
                self._start_worker(worker_index)
        self._deliver_ready(task.job)

    def _deliver_ready(self, job: PieceJob[PieceT, ResultT]) -> None:
        # A thread that finds another one delivering leaves its result there: that thread looks again after each call.
        while True:
            with self._lock:
                done = self._queue.begin_delivery(job, threading.get_ident())
            if done is None:
                return
            try:
                job.deliver(done)
            except BaseException:  # the border of the thread: a receiver's mistake must not cost a worker
                _logger.exception("the receiver of request %s failed; the rest of it is dropped", job.job_id)
                with self._lock:
                    self._queue.drop(job.job_id)
            finally:
                with self._lock:
                    self._queue.end_delivery(job)
                    self._delivery_ended.notify_all()
