"""What a pool that prepares inputs promises to its caller, whatever its workers are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from sixfold.core.errors import RequestError

PieceT = TypeVar("PieceT")
ResultT = TypeVar("ResultT")
PieceT_contra = TypeVar("PieceT_contra", contravariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceDone(Generic[ResultT]):
    """One piece of a job is prepared, or will never be.

    Attributes:
        job_id: The job it belongs to.
        index: Its place among the pieces of the job.
        value: What the work returned; None when ``error`` is set.
        error: Why this piece alone failed.
        is_last: No other piece of the job follows.
    """

    job_id: str
    index: int
    value: ResultT | None = None
    error: RequestError | None = None
    is_last: bool

    @property
    def result(self) -> ResultT:
        """The work's return value.

        Raises:
            RequestError: The piece failed.
        """
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # None only if ResultT allows it: the work returned it


class PiecePool(Protocol[PieceT_contra, ResultT]):
    """Prepares the pieces of many jobs on several workers, beside the running steps.

    Jobs take turns piece by piece, so a job of one piece waits for the pieces in work and for at most one piece of each
    other job. Pieces of one job run on several workers at once; their results are delivered one at a time, in the order
    of the pieces, each exactly once, the first as soon as it is ready.

    A worker that dies is replaced and its piece is done again; a piece that kills its worker twice fails alone.
    """

    def submit(
        self, job_id: str, pieces: Sequence[PieceT_contra], deliver: Callable[[PieceDone[ResultT]], None]
    ) -> None:
        """Takes all pieces of a job, or none. [any thread; returns at once]

        Args:
            job_id: Unique among the jobs that are neither cancelled nor delivered in full.
            pieces: At least one.
            deliver: Called in a thread of the pool, never twice at a time for one job. It must return in microseconds,
                must not raise and must not wait for a lock that a caller of `cancel` or `close` holds.

        Raises:
            QueueFull: The pool holds too many pieces now; ``retry_after_s`` comes from its measured speed.
            PayloadTooLarge: The job alone has more pieces than the pool ever holds.
            NotReady: The pool is closed.
        """
        ...

    def cancel(self, job_id: str) -> None:
        """Drops what is left of a job; nothing of it is delivered after this returns. [any thread, also `deliver`]

        Waits for a `deliver` call of the job that is running in another thread. An unknown or finished job is ignored.
        """
        ...

    def close(self) -> None:
        """Drops all jobs and ends the workers; nothing is delivered after this returns. Safe to repeat."""
        ...
