"""The loop that every modality shares: take in, choose, step, give out. Runs on one device thread; owns all request state.

`run_once` is one turn and knows nothing of threads, so that tests drive it with a fake clock; `manager.py` adds the thread,
the pool and the admission.

On a model that begins steps, one step is in flight between turns: a turn chooses and begins the next one, and only then
waits for the one before and hands out what it made, while the device computes.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sixfold.core.batching.budget import ObjectiveKind, StepBudget
from sixfold.core.batching.entry import Entry, RequestState
from sixfold.core.batching.flight import Flight
from sixfold.core.batching.model import Outcome, StepModel
from sixfold.core.batching.scheduler import Scheduler, Selection
from sixfold.core.batching.step_watch import DONE, StepWatch
from sixfold.core.errors import DeadlineExceeded, RequestCancelled, RequestError
from sixfold.core.messages import Event, Failed, Increment

_log = logging.getLogger(__name__)


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


class StepLoop:
    """See the module.

    Args:
        model: Stepped.
        scheduler: Chooses.
        budget: Told how long steps take.
        outbox: Gets what is made.
        clock: ``time.monotonic`` or a fake.
    """

    def __init__(
        self,
        model: StepModel[Any, Any, Any],
        scheduler: Scheduler,
        budget: StepBudget,
        outbox: Outbox,
        clock: Callable[[], float],
    ) -> None:
        self._model = model
        self._scheduler = scheduler
        self._budget = budget
        self._outbox = outbox
        self._clock = clock
        self._states: dict[str, RequestState] = {}
        self._entries: dict[int, Entry] = {}  # of live sequences, by their identity
        self._deadlines: list[tuple[float, int, RequestState]] = []
        self._num_stale_deadlines = 0  # of ended requests
        self._num_unserved = 0
        self._flight: Flight | None = None  # begun, not settled
        self._settled_s = 0.0  # when the last step ended
        self._elsewhere_since_s: float | None = None  # when work outside of steps was last counted, while there is any
        self._events: list[Event] = []
        self._complete: list[RequestState] = []
        self.inbox: deque[Callable[[StepLoop], None]] = deque()
        self.watch: StepWatch | None = None  # while somebody watches
        self.counters: Counter[str] = Counter()
        self.last_batch_sequences = 0
        self.max_batch_sequences = 0

    @property
    def idle(self) -> bool:
        """Whether no request is open and no step in flight."""
        return not self._states and self._flight is None

    @property
    def has_work(self) -> bool:
        """Whether `run_once` has something to do now, apart from the inbox."""
        return self._scheduler.has_work

    @property
    def next_deadline_s(self) -> float | None:
        """When the loop must turn at the latest."""
        return self._deadlines[0][0] if self._deadlines else None

    @property
    def num_running(self) -> int:
        """Sequences in the running batch."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Requests none of whose sequences was stepped yet."""
        return self._num_unserved

    @property
    def num_remembered_deadlines(self) -> int:
        """Deadlines that are kept, of open requests and of some that have ended."""
        return len(self._deadlines)

    # What comes in; each is called through the inbox, on the device thread.

    def open(self, state: RequestState, num_pieces: int) -> None:
        """A request was admitted; ``num_pieces`` will be prepared."""
        state.pieces_left = num_pieces
        self._states[state.request.request_id] = state
        self._num_unserved += 1
        self._scheduler.queue.open(state)
        if state.request.deadline_s is not None:
            heapq.heappush(self._deadlines, (state.request.deadline_s, state.order, state))

    def add_prepared(self, state: RequestState, sequences: Sequence[Any]) -> None:
        """The next piece of a request is ready; sequences of a request that is gone are released at once."""
        if state.ended:
            for sequence in sequences:
                self._model.release(sequence)
            return
        assert state.pieces_left is not None
        now_s = self._clock()
        state.pieces_left -= 1
        if state.ready_s is None:
            state.ready_s = now_s
        for sequence in sequences:
            entry = Entry(sequence, state, now_s)
            state.entries.append(entry)
            self._entries[id(sequence)] = entry
            state.num_open += 1
            self._scheduler.add(entry)
        self._finish_if_complete(state)

    def fail(self, state: RequestState, error: RequestError) -> None:
        """Ends a request with an error: a bad piece, a cancellation, a deadline, a failed step."""
        if not state.ended:
            self._end(state)  # first, so that the client is answered even if releasing raises
            self._events.append(Failed(request_id=state.request.request_id, error=error, trace=state.trace()))
            for entry in state.entries:
                self._release(entry, error.code or error.type)

    def withdraw(self, state: RequestState) -> None:
        """Ends a request whose client has its answer already, without an event."""
        if not state.ended:
            self._end(state)

    def cancel(self, request_id: str) -> None:
        """The client went away; harmless when the request has ended."""
        state = self._states.get(request_id)
        if state is not None:
            self.counters["cancelled"] += 1
            self.fail(state, RequestCancelled("The client cancelled the request."))

    def fail_all(self, error: RequestError) -> None:
        """Ends every request, for shutdown and a lost device; a step in flight counts for nothing."""
        self._abandon()
        for state in list(self._states.values()):
            try:
                self.fail(state, error)
            except Exception:  # the model is given up: everybody else must still be answered
                _log.exception("request %s could not be released", state.request.request_id)
        self.flush()

    def _abandon(self) -> None:
        flight, self._flight = self._flight, None
        if flight is not None:
            try:
                flight.abandon()
            except Exception:  # as in `fail_all`
                _log.exception("the step in flight could not be abandoned")

    # One turn.

    def run_once(self) -> bool:
        """Takes in what came, runs at most one step, sends what it made; False when no step was run nor in flight.

        Raises:
            DeviceLost: Nothing can run any more; the caller ends all requests with `fail_all`.
        """
        while self.inbox:
            self.inbox.popleft()(self)
        self._expire()
        self._collect()
        self._count_elsewhere()
        in_flight = () if self._flight is None else self._flight.selection.entries
        selection = self._scheduler.select(self._clock(), in_flight)
        while selection.rejected:
            for entry, error in selection.rejected:
                self.fail(entry.state, error)
            selection = self._scheduler.select(self._clock(), in_flight)
        stepped = self._step(selection)
        self.flush()
        if self._scheduler.num_elsewhere or self._elsewhere_since_s is not None:
            self._elsewhere_since_s = self._clock() if self._scheduler.running else None
        return stepped

    def _count_elsewhere(self) -> None:
        """Time in which sequences worked outside of steps is time of work, too, for the drain rate."""
        if self._elsewhere_since_s is not None:
            self._outbox.stepped(0, self._clock() - self._elsewhere_since_s)

    def _expire(self) -> None:
        now_s = self._clock()
        while self._deadlines and (self._deadlines[0][0] <= now_s or self._deadlines[0][2].ended):
            state = heapq.heappop(self._deadlines)[2]
            if state.ended:
                self._num_stale_deadlines -= 1
            else:
                self.counters["expired"] += 1
                self._num_stale_deadlines -= 1  # `fail` counts it, but it is out already
                self.fail(state, DeadlineExceeded("The request's deadline passed before it was done."))

    def _forget_deadlines(self) -> None:
        # An ended request must not be kept until a deadline far away; rebuilding at half costs O(1) a request.
        if not self._states or self._num_stale_deadlines * 2 > len(self._deadlines) + 64:
            self._deadlines = [row for row in self._deadlines if not row[2].ended]
            heapq.heapify(self._deadlines)
            self._num_stale_deadlines = 0

    def _step(self, selection: Selection) -> bool:
        """Begins the chosen step, if any, and settles the one in flight; False if there was neither."""
        before, self._flight = self._flight, None
        flight = self._begin(selection) if selection.entries else None
        if before is not None:
            self._settle(before, flight)
        if flight is not None and flight.may_be_followed:
            self._flight = flight
        elif flight is not None:
            self._settle(flight, None)
        return before is not None or flight is not None

    def _begin(self, selection: Selection) -> Flight:
        flight = Flight(selection, self._clock())
        for state in flight.states.values():
            if state.first_step_s is None:
                state.first_step_s = flight.began_s
                self._num_unserved -= 1
            state.num_steps += 1
            state.max_batch_sequences = max(state.max_batch_sequences, len(selection.entries))
        self.last_batch_sequences = len(selection.entries)
        self.max_batch_sequences = max(self.max_batch_sequences, self.last_batch_sequences)
        flight.begin(self._model)
        return flight

    def _settle(self, flight: Flight, follower: Flight | None) -> None:
        outcomes = flight.settle(self._model, follower)
        ended_s = self._clock()
        self._collect()
        selection = flight.selection
        # A step in flight waited for the one before: the device was busy with it only since then.
        seconds = ended_s - max(flight.began_s, self._settled_s)
        self._settled_s = ended_s
        self._budget.observe_step(selection.units, seconds, limited=selection.limited, key=selection.key)
        self._outbox.stepped(selection.units, seconds)
        self.counters["steps"] += 1
        self.counters["units"] += selection.units
        if self.watch is not None:
            self.watch.stepped(
                self.counters["steps"], selection, at_s=ended_s, seconds=seconds, num_waiting=self._num_unserved
            )
        for state in flight.states.values():
            state.last_step_s = ended_s
            if state.step_log is not None:
                state.note_step(ended_s - seconds, ended_s, selection.units, len(selection.entries))
        self._outbox.granted([(entry.state, units) for entry, units, _outcome in outcomes])
        for entry, _units, outcome in outcomes:
            if outcome is not None:
                self._apply(entry, outcome, ended_s)

    def _collect(self) -> None:
        """Takes in what sequences did outside of steps."""
        now_s = self._clock()
        for sequence, outcome in self._model.collect():
            entry = self._entries.get(id(sequence))
            if entry is not None:
                entry.state.last_step_s = now_s
                self._apply(entry, outcome, now_s)

    def _apply(self, entry: Entry, outcome: Outcome[Any], now_s: float) -> None:
        state = entry.state
        if state.ended or entry.released:  # another sequence of the same request failed in this step
            return
        if outcome.error is not None:
            self.counters["failed_steps"] += 1
            if outcome.error.__cause__ is not None:
                _log.error(
                    "request %s failed",
                    state.request.request_id,
                    exc_info=outcome.error.__cause__,
                    extra=state.log_fields,
                )
            self.fail(state, outcome.error)
            return
        if outcome.output is not None:
            self._observe_output(state, now_s)
            self._events.append(Increment(request_id=state.request.request_id, output=outcome.output))
        if outcome.done:
            self._release(entry, DONE)
            state.num_open -= 1
            self._finish_if_complete(state)

    def _observe_output(self, state: RequestState, now_s: float) -> None:
        if state.first_output_s is None:
            state.first_output_s = now_s
            self._budget.observe_latency(ObjectiveKind.P95_TTFT_S, now_s - state.request.arrived_s)
        elif state.last_output_s is not None and now_s > state.last_output_s:
            self._budget.observe_latency(ObjectiveKind.P95_ITL_S, now_s - state.last_output_s)
        state.last_output_s = now_s

    def _finish_if_complete(self, state: RequestState) -> None:
        if state.complete and not state.ended:
            now_s = self._clock()
            if state.first_output_s is None:
                self._budget.observe_latency(ObjectiveKind.P95_TTFT_S, now_s - state.request.arrived_s)
            self._budget.observe_latency(ObjectiveKind.P95_LATENCY_S, now_s - state.request.arrived_s)
            self.counters["finished"] += 1
            self._end(state)
            self._complete.append(state)

    def _release(self, entry: Entry, reason: str) -> None:
        if not entry.released:
            entry.released = True
            if self.watch is not None:
                self.watch.left(entry, reason)
            del self._entries[id(entry.sequence)]
            self._scheduler.remove(entry)  # harmless if the whole request was closed
            self._model.release(entry.sequence)

    def _end(self, state: RequestState) -> None:
        state.ended = True
        del self._states[state.request.request_id]
        self._num_unserved -= state.first_step_s is None
        if state.request.deadline_s is not None:
            self._num_stale_deadlines += 1
        if self._num_stale_deadlines:  # of others, too: the last one to end may have had no deadline
            self._forget_deadlines()
        self._scheduler.close_request(state)
        self._outbox.ended(state)

    def flush(self) -> None:
        """Sends what the turn made: increments and failures first, then results, so that order is kept per request."""
        if self._events:
            events, self._events = tuple(self._events), []
            self._outbox.emit(events)
        if self._complete:
            complete, self._complete = self._complete, []
            self._outbox.finish(complete)
