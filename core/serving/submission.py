"""One request at a replica: its events, measured on the way to whoever reads them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from time import monotonic
from typing import Any

from sixfold.core.errors import RequestCancelled, RequestError
from sixfold.core.messages import Event, Failed, Finished, Increment, Usage
from sixfold.core.runtime.replica import EventStream
from sixfold.core.serving.metrics import ModelMetrics
from sixfold.core.serving.submission_record import SubmissionRecord


class Submission:
    """Reads a replica's events and feeds the metrics; owned by the call that submitted it.

    Args:
        stream: The replica's events.
        metrics: Of the model.
        arrived_s: When the HTTP request arrived, for latencies that the client sees.
        on_end: Called once with the submission, when the request is over in any way.
        record: Of the work, where it is traced or logged.
    """

    __slots__ = (
        "_arrived_s",
        "_last_s",
        "_metrics",
        "_on_end",
        "_reason",
        "_record",
        "_stream",
        "ended",
        "num_increments",
        "usage",
    )

    def __init__(
        self,
        stream: EventStream,
        metrics: ModelMetrics,
        arrived_s: float,
        on_end: Callable[[Submission], None],
        record: SubmissionRecord | None = None,
    ) -> None:
        self._record = record
        self._stream = stream
        self._metrics = metrics
        self._arrived_s = arrived_s
        self._on_end = on_end
        self._last_s = 0.0
        self._reason: RequestError | None = None
        self.ended = False
        self.usage: Usage | None = None  # of its Finished event
        self.num_increments = 0
        metrics.began(monotonic())

    async def next_events(self) -> tuple[Event, ...]:
        """Waits for events and returns all that are there; the last of a request is Finished or Failed.

        Raises:
            RequestError: The request was cancelled, with the reason given to `cancel`.
        """
        events = await self._stream.next_events()
        if not events:
            self.cancel(RequestCancelled("The request was cancelled."))
            assert self._reason is not None
            raise self._reason
        now_s = monotonic()
        last = events[-1]
        if isinstance(last, Increment):
            self._note_increments(len(events), now_s)
        else:
            if len(events) > 1:
                self._note_increments(len(events) - 1, now_s)
            if not self.ended:
                self.usage = last.usage if isinstance(last, Finished) else None
                self._end()
                if isinstance(last, Finished):
                    self._metrics.finished(last, now_s - self._arrived_s)
                else:
                    self._metrics.failed(last.error)
                if self._record is not None:
                    self._record.ended(last)
        return events

    def cancel(self, reason: RequestError) -> None:
        """Ends the request at its replica within one step; whoever reads gets ``reason``. Harmless after its end."""
        if self.ended:
            return
        self._reason = reason
        self._end()
        self._metrics.failed(reason)
        if self._record is not None:
            self._record.cancelled(reason)
        self._stream.cancel()

    def _end(self) -> None:
        self.ended = True
        self._metrics.ended(monotonic())
        self._on_end(self)

    def _note_increments(self, count: int, now_s: float) -> None:
        self.num_increments += count
        metrics = self._metrics
        if self._last_s == 0.0:
            metrics.time_to_first.observe(now_s - self._arrived_s)
            if self._record is not None:
                self._record.first_output(now_s)
        else:
            # Increments that arrive together were made apart: they share the time since the last.
            gap_s = (now_s - self._last_s) / count
            for _ in range(count):
                metrics.inter_token.observe(gap_s)
        self._last_s = now_s


class RunningSubmission:
    """`sixfold.core.serving.api.Running`: a submission whose first events have arrived."""

    __slots__ = ("_first", "_submission")

    def __init__(self, submission: Submission, first: tuple[Event, ...]) -> None:
        self._submission = submission
        self._first = first

    async def __aiter__(self) -> AsyncIterator[Sequence[Event]]:
        """Yields events in bulk; raises the RequestError of a Failed event after what came before it."""
        events = self._first
        while True:
            last = events[-1]
            if isinstance(last, Failed):
                if len(events) > 1:
                    yield events[:-1]
                raise last.error
            yield events
            if isinstance(last, Finished):
                return
            events = await self._submission.next_events()


async def first_events(submission: Submission) -> RunningSubmission:
    """Waits for a submission's first events.

    Raises:
        RequestError: It failed before it had anything to say.
    """
    events = await submission.next_events()
    first = events[0]
    if isinstance(first, Failed):
        raise first.error
    return RunningSubmission(submission, events)


async def final_event(submission: Submission) -> Finished[Any]:
    """Waits for the end of a submission and drops its increments.

    Raises:
        RequestError: What it ended with.
    """
    while True:
        last = (await submission.next_events())[-1]
        if isinstance(last, Finished):
            return last
        if isinstance(last, Failed):
            raise last.error
