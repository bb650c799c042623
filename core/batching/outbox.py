"""What leaves the step loop of a replica: events to the client's side, room to admission, finished requests to their results."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from sixfold.core.batching.admission import Admission, Ticket
from sixfold.core.batching.entry import RequestState
from sixfold.core.batching.in_progress import InProgress
from sixfold.core.batching.model import StepModel
from sixfold.core.batching.returned import SEE_LOG, finish_of, log_cause
from sixfold.core.errors import InvalidRequest, RequestError, StepFailed
from sixfold.core.messages import Event, Failed, Finished, Request
from sixfold.core.tokenization.pieces import PiecePool

_log = logging.getLogger(__name__)

PreparePool = PiecePool[tuple[Request[Any], object], Sequence[Any]]
"""Prepares (request, piece) into sequences."""


class Outbox(Protocol):
    """Where the loop sends what it made. Called on the device thread."""

    def emit(self, events: tuple[Event, ...]) -> None:
        """Sends the increments and failures of one turn."""
        ...

    def finish(self, states: Sequence[RequestState]) -> None:
        """Makes and sends the results of requests that are complete and released; may do so elsewhere."""
        ...

    def granted(self, grants: Sequence[tuple[RequestState, int]]) -> None:
        """Counts the granted work of a step as done, for admission."""
        ...

    def ended(self, state: RequestState) -> None:
        """The request holds nothing any more; called once for each that was opened."""
        ...

    def stepped(self, units: int, seconds: float) -> None:
        """A step was done, for the drain rate."""
        ...


class ManagerOutbox:
    """The `Outbox` of a `BatchManager`.

    Args:
        model: Makes the results, in threads of this outbox.
        pool: Told to drop what is left of an ended request.
        admission: Gets room back.
        emit: Gets all events; see `BatchManager`.
        in_progress: Told of each result that is made.
    """

    def __init__(
        self,
        model: StepModel[Any, Any, Any],
        pool: PreparePool,
        admission: Admission,
        emit: Callable[[tuple[Event, ...]], object],
        in_progress: InProgress,
    ) -> None:
        self._model = model
        self._pool = pool
        self._admission = admission
        self._emit = emit
        self._in_progress = in_progress
        self._finishers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="finish")
        self._tickets: dict[str, Ticket] = {}
        self._changed = threading.Condition()

    def admit(self, request: Request[Any], units: int, now_s: float) -> None:
        """Takes room for a request. [any thread]

        Raises:
            QueueFull: At once.
            InvalidRequest: A request of this id has not ended.
        """
        within_s = None if request.deadline_s is None else request.deadline_s - now_s
        with self._changed:
            if request.request_id in self._tickets:
                raise InvalidRequest(f"The request id {request.request_id!r} is in use by a running request.")
            self._tickets[request.request_id] = self._admission.admit(
                units,
                within_s=within_s,
                tenant=request.tenant,
                priority=request.priority,
                weight=request.weight,
            )

    def wait_idle(self, timeout_s: float | None) -> bool:
        """Waits until no request is admitted; False if the time ran out. [any thread]"""
        with self._changed:
            return self._changed.wait_for(lambda: not self._tickets, timeout_s)

    def close(self) -> None:
        """Waits for the results that are being made. [any thread but the device's]"""
        self._finishers.shutdown(wait=True)

    def emit(self, events: tuple[Event, ...]) -> None:
        """Forwards events of the loop. [device]"""
        self._emit(events)

    def granted(self, grants: Sequence[tuple[RequestState, int]]) -> None:
        """Counts granted work as done. [device]"""
        found = [(self._tickets.get(state.request.request_id), units) for state, units in grants]
        self._admission.consume([(ticket, units) for ticket, units in found if ticket is not None])

    def stepped(self, units: int, seconds: float) -> None:
        """Feeds the drain rate. [device]"""
        self._admission.observe_step(units, seconds)

    def ended(self, state: RequestState) -> None:
        """Gives back the request's room. [device]"""
        request_id = state.request.request_id
        if state.pieces_left:
            self._pool.cancel(request_id)
        with self._changed:
            self._admission.leave(self._tickets.pop(request_id), finished=state.complete)
            self._changed.notify_all()

    def finish(self, states: Sequence[RequestState]) -> None:
        """Makes and sends results beside the next step. [device; a submitting thread after the end]"""
        try:
            self._finishers.submit(self._finish_now, states)
        except RuntimeError:  # closed: a request without sequences came while the manager ended
            self._finish_now(states)

    def _finish_now(self, states: Sequence[RequestState]) -> None:
        self._emit(tuple(self._last_event(state) for state in states))

    def _last_event(self, state: RequestState) -> Event:
        request_id = state.request.request_id
        try:
            sequences = [entry.sequence for entry in state.entries]
            with self._in_progress.doing("making a result"):
                end = finish_of(self._model, "finish", self._model.finish(state.request, sequences))
        except RequestError as error:
            log_cause(error, request_id, state.log_fields)
            return Failed(request_id=request_id, error=error, trace=state.trace())
        except Exception:  # the border between the core and a model's code
            _log.exception("finish failed for request %s", request_id, extra=state.log_fields)
            return Failed(request_id=request_id, error=StepFailed(SEE_LOG), trace=state.trace())
        return Finished(
            request_id=request_id,
            result=end.result,
            usage=end.usage,
            timing=state.timing(),
            finish_reason=end.finish_reason,
            trace=state.trace(),
        )
