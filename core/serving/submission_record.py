"""One piece of a request's work at a replica, as its trace shows it: a span, and the worker's own times below it."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from sixfold.core.errors import RequestError
from sixfold.core.messages import Failed, Finished, ReplicaTrace
from sixfold.core.serving.request_record import RequestRecord
from sixfold.core.telemetry.conventions import (
    replica_attributes,
    request_attributes,
    result_attributes,
    step_attributes,
)
from sixfold.core.telemetry.names import TraceNames

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from sixfold.core.telemetry.tracing import RequestTrace


class SubmissionRecord:
    """Made when a replica has admitted the work, ended once.

    Args:
        record: Of the request.
        names: What the family's stages are called.
        submitted_s: ``time.monotonic()`` at which it was handed over.
    """

    __slots__ = ("_first_s", "_names", "_record", "_span", "_submitted_s")

    def __init__(self, record: RequestRecord, names: TraceNames, submitted_s: float) -> None:
        self._record = record
        self._names = names
        self._submitted_s = submitted_s
        self._first_s: float | None = None
        self._span: Span | None = None
        if record.trace is not None:
            replica = record.replica if isinstance(record.replica, int) else 0
            attributes = request_attributes(names, record.operation or "", record.model or "", replica)
            name = f"{attributes['gen_ai.operation.name']} {record.model}"
            self._span = record.trace.open(name, began_s=submitted_s, attributes=attributes)

    def first_output(self, at_s: float) -> None:
        """The first increment is here."""
        self._first_s = at_s

    def ended(self, event: Finished[Any] | Failed) -> None:
        """The replica has said its last word."""
        now_s = monotonic()
        record, trace = self._record, self._record.trace
        if isinstance(event, Finished):
            record.finished(event)
        if trace is None or self._span is None:
            return
        if event.trace is not None:
            self._span.set_attributes(replica_attributes(event.trace))
            self._add_stages(trace, self._span, event.trace, now_s if isinstance(event, Finished) else None)
        if isinstance(event, Finished):
            ttft_s = None if self._first_s is None else self._first_s - self._submitted_s
            self._span.set_attributes(dict(result_attributes(event, ttft_s)))
        trace.close(self._span, now_s, error=error_name(event.error) if isinstance(event, Failed) else None)

    def cancelled(self, reason: RequestError) -> None:
        """Its reader has given it up; what the worker knows of it will not come."""
        if self._record.trace is not None and self._span is not None:
            self._record.trace.close(self._span, monotonic(), error=error_name(reason))

    def _add_stages(self, trace: RequestTrace, parent: Span, worker: ReplicaTrace, finished_s: float | None) -> None:
        """Puts the worker's times below the span, and its steps as events of the stages that they were in.

        They count from the arrival there, which is taken to be the moment of handing over: what the channel takes shows in
        the last stage, and nothing sticks out of the span.
        """
        names, start_s = self._names, self._submitted_s
        first_output_s, last_step_s = worker.first_output_s, worker.last_step_s
        stages = (
            (names.prepare, 0.0, worker.ready_s),
            ("queue", worker.ready_s, worker.first_step_s),
            (names.first, worker.first_step_s, last_step_s if first_output_s is None else first_output_s),
            (names.rest, first_output_s, last_step_s),
            (names.finish, last_step_s, None if finished_s is None else finished_s - start_s),
        )
        for name, began_s, ended_s in stages:
            if began_s is None or ended_s is None or (name == names.rest and ended_s <= began_s):
                continue
            span = trace.open(name, began_s=start_s + began_s, parent=parent)
            for group in worker.steps:
                if began_s <= group.began_s < ended_s:
                    trace.add_event(span, "steps", start_s + group.began_s, step_attributes(group))
            trace.close(span, start_s + max(began_s, ended_s))


def error_name(error: RequestError) -> str:
    """What kind of error it is, for logs and spans: never its message, which may quote the request."""
    return error.code or type(error).__name__
