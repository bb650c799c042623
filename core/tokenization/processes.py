"""The pool for work that may crash or that holds the GIL: spawned processes, one pipe each."""

from __future__ import annotations

import logging
import multiprocessing
import queue
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Generic

from sixfold.core.errors import NotReady, RequestError, StepFailed, WorkerDied
from sixfold.core.tokenization.pieces import PieceDone, PieceT, ResultT
from sixfold.core.tokenization.pool import ThreadPiecePool

_logger = logging.getLogger(__name__)


class ProcessPiecePool(Generic[PieceT, ResultT]):
    """A `PiecePool` of processes: see there for what it promises.

    Takes foreign bytes whose decoder may crash, and Python that would fight the step loop for the GIL. A thread of this
    process waits for each worker, so order, fairness and redoing are those of the thread pool.

    Args:
        make_work: Called once in each worker; returns what prepares one piece there. Pickled, so a module's function or
            a `functools.partial` of one; the pieces, the results and RequestErrors are pickled too.
        num_workers: Processes; they start at once and load while the caller goes on.
        max_pending_pieces: Bound on pieces that are accepted and not delivered yet.
        name: Prefix of the process names.
    """

    def __init__(
        self,
        make_work: Callable[[], Callable[[PieceT], ResultT]],
        *,
        num_workers: int,
        max_pending_pieces: int,
        name: str = "pool",
    ) -> None:
        self._workers = tuple(_Worker(make_work, f"{name}-{index}") for index in range(num_workers))
        self._idle: queue.SimpleQueue[_Worker[PieceT, ResultT]] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads: ThreadPiecePool[PieceT, ResultT] = ThreadPiecePool(
            self._call_worker, num_workers=num_workers, max_pending_pieces=max_pending_pieces, name=name
        )

    @property
    def num_pending_pieces(self) -> int:
        """Pieces that are accepted and neither delivered nor dropped. [any thread]"""
        return self._threads.num_pending_pieces

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers of this moment. [any thread]"""
        return tuple(worker.pid for worker in self._workers)

    def submit(self, job_id: str, pieces: Sequence[PieceT], deliver: Callable[[PieceDone[ResultT]], None]) -> None:
        """Takes all pieces of a job, or none; see `PiecePool.submit`."""
        self._threads.submit(job_id, pieces, deliver)

    def cancel(self, job_id: str) -> None:
        """Drops what is left of a job; see `PiecePool.cancel`."""
        self._threads.cancel(job_id)

    def close(self) -> None:
        """Drops all jobs and kills the workers, also one that hangs; see `PiecePool.close`."""
        for worker in self._workers:
            worker.kill()
        self._threads.close()
        for worker in self._workers:
            worker.join()

    def _call_worker(self, piece: PieceT) -> ResultT:
        worker = self._idle.get()  # as many threads as workers: there is one
        try:
            return worker.call(piece)
        finally:
            self._idle.put(worker)


class _WorkerCrashed(BaseException):
    """The process died under a piece. No Exception: it takes the way of every crash, so the piece is done again."""


@dataclass(frozen=True, slots=True)
class _Ready:
    """First message of a worker that has its work function."""


@dataclass(frozen=True, slots=True)
class _Returned:
    """The work's return value."""

    value: object


@dataclass(frozen=True, slots=True)
class _Refused:
    """The input is bad."""

    error: RequestError


@dataclass(frozen=True, slots=True)
class _Raised:
    """Anything else went wrong; the traceback is for the log of the parent."""

    traceback: str


class _Worker(Generic[PieceT, ResultT]):
    """One process at a time and its pipe. Owned by the thread that took it from the idle queue; `kill` by any."""

    def __init__(self, make_work: Callable[[], Callable[[PieceT], ResultT]], name: str) -> None:
        self._make_work = make_work
        self._name = name
        self._killed = False
        self._spawn()

    @property
    def pid(self) -> int:
        """Of the present process."""
        return self._process.pid or 0

    def call(self, piece: PieceT) -> ResultT:
        """Does one piece in the process.

        Raises:
            RequestError: The piece is bad, or the worker cannot start.
            _WorkerCrashed: The process died meanwhile; the next call starts another.
        """
        self._await_ready()
        try:
            self._connection.send(piece)
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            if self._killed:
                raise NotReady("The server is shutting down.") from error
            raise _WorkerCrashed(f"{self._name} ended with exit code {self._process.exitcode}") from error
        if isinstance(answer, _Returned):
            return answer.value  # type: ignore[return-value]  # the worker's work function returns ResultT
        if isinstance(answer, _Refused):
            raise answer.error
        assert isinstance(answer, _Raised)
        _logger.error("%s failed on a piece:\n%s", self._name, answer.traceback)
        raise StepFailed("This input could not be prepared for the model; the server's log says why.")

    def kill(self) -> None:
        """Ends the process for good, whatever it does."""
        self._killed = True
        self._process.kill()

    def join(self) -> None:
        """Waits for the killed process and closes the pipe."""
        self._process.kill()  # one may have been spawned while `kill` ran
        self._process.join()
        self._connection.close()

    def _spawn(self) -> None:
        # Spawned, not forked: the parent has threads and perhaps an accelerator, which do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._make_work), name=self._name, daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self._is_ready = False

    def _await_ready(self) -> None:
        if self._is_ready and not self._process.is_alive() and not self._killed:
            self._connection.close()
            self._spawn()
        if self._is_ready:
            return
        try:
            first = self._connection.recv()
        except (EOFError, OSError):
            first = _Raised("the process ended before it was ready")
        if isinstance(first, _Ready):
            self._is_ready = True
            return
        self._process.join()
        if self._killed:
            raise NotReady("The server is shutting down.")
        _logger.error("%s cannot start:\n%s", self._name, first.traceback)
        self._connection.close()
        self._spawn()  # the next piece tries again: what is missing now, such as memory, may be there then
        raise WorkerDied("The process that prepares inputs cannot start; the server's log says why.")


def _serve(connection: Connection, make_work: Callable[[], Callable[[PieceT], ResultT]]) -> None:
    """Main function of a worker: answers one message per piece until the parent closes the pipe or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    try:
        work = make_work()
    except Exception:  # the border of the process
        connection.send(_Raised(traceback.format_exc()))
        return
    connection.send(_Ready())
    while True:
        try:
            answer = _answer(work, connection.recv())
        except EOFError:
            return
        except Exception:  # the border of the process: a piece that cannot be unpickled
            answer = _Raised(traceback.format_exc())
        try:
            connection.send(answer)
        except BrokenPipeError:
            return
        except Exception:  # the result cannot be pickled, and nothing of it was written
            connection.send(_Raised(traceback.format_exc()))


def _answer(work: Callable[[PieceT], ResultT], piece: PieceT) -> _Returned | _Refused | _Raised:
    try:
        return _Returned(work(piece))
    except RequestError as error:
        return _Refused(error)
    except Exception:  # the border of the process
        return _Raised(traceback.format_exc())
