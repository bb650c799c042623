"""Who is next, what may be delivered and what must be done again: the pool's decisions, free of threads and clocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

from sixfold.core.errors import PayloadTooLarge, QueueFull, RequestError, StepFailed
from sixfold.core.tokenization.pieces import PieceDone, PieceT, ResultT

_MAX_CRASHES = 2  # One crash may be the machine's fault; a second on the same piece is the piece's.
_SMOOTHING = 0.1  # Weight of the newest piece in the mean time of a piece.


@dataclass(frozen=True, slots=True)
class Success(Generic[ResultT]):
    """The work returned ``value``."""

    value: ResultT


class PieceJob(Generic[PieceT, ResultT]):
    """The state of one job; only its `PieceQueue` writes to it.

    Attributes:
        deliver: Where its results go.
        deliverer: Identity of the thread that is inside ``deliver``, or None.
    """

    def __init__(self, job_id: str, pieces: Sequence[PieceT], deliver: Callable[[PieceDone[ResultT]], None]) -> None:
        self.job_id = job_id
        self.deliver = deliver
        self.deliverer: int | None = None
        self.pieces = tuple(pieces)
        self.todo = deque(range(len(self.pieces)))
        self.done: dict[int, Success[ResultT] | RequestError] = {}
        self.num_crashes: dict[int, int] = {}
        self.num_delivered = 0
        self.in_rotation = False
        self.dropped = False

    @property
    def num_pending(self) -> int:
        """Pieces that are not delivered yet."""
        return len(self.pieces) - self.num_delivered


@dataclass(frozen=True, slots=True)
class PieceTask(Generic[PieceT, ResultT]):
    """One piece in the hands of one worker."""

    job: PieceJob[PieceT, ResultT]
    index: int

    @property
    def piece(self) -> PieceT:
        """What the worker gets."""
        return self.job.pieces[self.index]


class PieceQueue(Generic[PieceT, ResultT]):
    """Jobs that take turns piece by piece. Not thread-safe: the pool holds its lock around every call.

    Invariants. A job is in the rotation exactly while it has a piece that no worker holds. Of a live job each index is
    in one place: to do, in a worker's hands, done, or delivered. The pending count is the sum over live jobs of what is
    not delivered, and never passes the bound.
    """

    def __init__(self, *, num_workers: int, max_pending_pieces: int) -> None:
        if num_workers < 1 or max_pending_pieces < 1:
            raise ValueError(
                f"num_workers={num_workers} and max_pending_pieces={max_pending_pieces} must be at least 1"
            )
        self._num_workers = num_workers
        self._max_pending = max_pending_pieces
        self._jobs: dict[str, PieceJob[PieceT, ResultT]] = {}
        self._rotation: deque[PieceJob[PieceT, ResultT]] = deque()
        self._num_pending = 0
        self._piece_s = 0.0  # smoothed time of one piece

    @property
    def num_pending_pieces(self) -> int:
        """Pieces that are accepted and neither delivered nor dropped."""
        return self._num_pending

    @property
    def job_ids(self) -> tuple[str, ...]:
        """Jobs that still have something to deliver."""
        return tuple(self._jobs)

    def add(self, job_id: str, pieces: Sequence[PieceT], deliver: Callable[[PieceDone[ResultT]], None]) -> None:
        """Takes a job; see `PiecePool.submit`."""
        if not pieces or job_id in self._jobs:
            raise ValueError(f"job {job_id!r} has no pieces or is in the pool already")
        if len(pieces) > self._max_pending:
            raise PayloadTooLarge(
                f"The request has {len(pieces)} parts; at most {self._max_pending} are taken. "
                "Send it in smaller requests."
            )
        excess = self._num_pending + len(pieces) - self._max_pending
        if excess > 0:
            raise QueueFull(
                f"{self._num_pending} parts of other requests wait to be prepared; try again later.",
                retry_after_s=excess * self._piece_s / self._num_workers or None,
            )
        job = PieceJob(job_id, pieces, deliver)
        self._jobs[job_id] = job
        self._num_pending += len(pieces)
        self._enter(job, first=False)

    def take(self) -> PieceTask[PieceT, ResultT] | None:
        """Hands out the next piece, or None when every piece is in work."""
        if not self._rotation:
            return None
        job = self._rotation.popleft()
        job.in_rotation = False
        task = PieceTask(job, job.todo.popleft())
        if job.todo:
            self._enter(job, first=False)
        return task

    def complete(
        self, task: PieceTask[PieceT, ResultT], outcome: Success[ResultT] | RequestError, *, elapsed_s: float
    ) -> None:
        """The worker is done with the piece, well or not."""
        self._piece_s += (elapsed_s - self._piece_s) * (_SMOOTHING if self._piece_s else 1.0)
        if not task.job.dropped:
            task.job.done[task.index] = outcome

    def crash(self, task: PieceTask[PieceT, ResultT]) -> None:
        """The worker died of the piece or with it: the piece is next once more, then it fails."""
        job = task.job
        if job.dropped:
            return
        num_crashes = job.num_crashes[task.index] = job.num_crashes.get(task.index, 0) + 1
        if num_crashes < _MAX_CRASHES:
            # It had its turn already, and results behind it wait for it.
            job.todo.appendleft(task.index)
            self._enter(job, first=True)
        else:
            job.done[task.index] = StepFailed(
                f"Preparing this input ended its worker {num_crashes} times; it is not tried again."
            )

    def begin_delivery(self, job: PieceJob[PieceT, ResultT], thread_id: int) -> PieceDone[ResultT] | None:
        """The job's next result, if it is there and no thread delivers for the job; then `end_delivery` must follow."""
        if job.dropped or job.deliverer is not None or job.num_delivered not in job.done:
            return None
        index = job.num_delivered
        outcome = job.done.pop(index)
        is_last = index == len(job.pieces) - 1
        job.deliverer = thread_id
        job.num_delivered += 1
        self._num_pending -= 1
        if isinstance(outcome, RequestError):
            return PieceDone(job_id=job.job_id, index=index, error=outcome, is_last=is_last)
        return PieceDone(job_id=job.job_id, index=index, value=outcome.value, is_last=is_last)

    def end_delivery(self, job: PieceJob[PieceT, ResultT]) -> None:
        """``deliver`` returned; after its last piece the job is over."""
        job.deliverer = None
        if not job.dropped and job.num_pending == 0:
            self._forget(job)

    def drop(self, job_id: str) -> PieceJob[PieceT, ResultT] | None:
        """Ends a job; its results are delivered no more. Returns it if it was live."""
        job = self._jobs.get(job_id)
        if job is not None:
            self._num_pending -= job.num_pending
            self._forget(job)
        return job

    def _enter(self, job: PieceJob[PieceT, ResultT], *, first: bool) -> None:
        if job.in_rotation:
            self._rotation.remove(job)
        job.in_rotation = True
        (self._rotation.appendleft if first else self._rotation.append)(job)

    def _forget(self, job: PieceJob[PieceT, ResultT]) -> None:
        job.dropped = True
        job.todo.clear()
        job.done.clear()
        if job.in_rotation:
            self._rotation.remove(job)
            job.in_rotation = False
        del self._jobs[job.job_id]
