"""The loop that every modality shares: take in, choose, step, give out. Runs on one device thread; owns all request state.

`run_once` is one turn and knows nothing of threads, so that tests drive it with a fake clock; `manager.py` adds the thread,
the pool and the admission.

On a model that begins steps, one step is in flight between turns: a turn chooses and begins the next one, and only then
waits for the one before and hands out what it made, while the device computes.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from sixfold.core.batching.budget import StepBudget
from sixfold.core.batching.deadlines import Deadlines
from sixfold.core.batching.entry import Entry, RequestState
from sixfold.core.batching.flight import Flight
from sixfold.core.batching.latencies import observe_end, observe_output
from sixfold.core.batching.model import Outcome, StepModel
from sixfold.core.batching.outbox import Outbox
from sixfold.core.batching.returned import log_cause, no_outcome
from sixfold.core.batching.scheduler import Scheduler
from sixfold.core.batching.selection import Selection
from sixfold.core.batching.step_watch import DONE, StepWatch
from sixfold.core.errors import DeadlineExceeded, RequestCancelled, RequestError
from sixfold.core.messages import Event, Failed, Increment

_log = logging.getLogger(__name__)


class StepLoop:
    """See the module.

    Args:
        model: Stepped.
        scheduler: Chooses.
        budget: Told how long steps take.
        outbox: Gets what is made.
        clock: ``time.monotonic`` or a fake.
        before_step: Called when it is known who is in the next step.
    """

    def __init__(
        self,
        model: StepModel[Any, Any, Any],
        scheduler: Scheduler,
        budget: StepBudget,
        outbox: Outbox,
        clock: Callable[[], float],
        *,
        before_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._before_step = before_step
        self._model = model
        self._scheduler = scheduler
        self._budget = budget
        self._outbox = outbox
        self._clock = clock
        self._states: dict[str, RequestState] = {}
        self._entries: dict[int, Entry] = {}  # of live sequences, by their identity
        self.deadlines = Deadlines()
        self._num_unserved = 0
        self._flight: Flight | None = None  # begun, not settled
        self._settled_s = 0.0  # when the last step ended
        self._elsewhere_since_s: float | None = None  # when work outside of steps was last counted, while there is any
        self._events: list[Event] = []
        self._complete: list[RequestState] = []
        self.inbox: deque[Callable[[StepLoop], None]] = deque()
        self.watch: StepWatch | None = None  # while somebody watches
        self.counters: Counter[str] = Counter()
        self.busy_s = 0.0  # that steps took, together
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
        return self.deadlines.next_s

    @property
    def num_running(self) -> int:
        """Sequences in the running batch."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Requests none of whose sequences was stepped yet."""
        return self._num_unserved

    # What comes in; each is called through the inbox, on the device thread.

    def open(self, state: RequestState, num_pieces: int) -> None:
        """A request was admitted; ``num_pieces`` will be prepared."""
        state.pieces_left = num_pieces
        self._states[state.request.request_id] = state
        self._num_unserved += 1
        self._scheduler.queue.open(state)
        self.deadlines.add(state)

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
                log_cause(error, entry.state.request.request_id, entry.state.log_fields)
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
        while (state := self.deadlines.pop_due(now_s)) is not None:
            self.counters["expired"] += 1
            self.fail(state, DeadlineExceeded("The request's deadline passed before it was done."))

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
        self._num_unserved -= flight.note_begun()
        self.last_batch_sequences = len(selection.entries)
        self.max_batch_sequences = max(self.max_batch_sequences, self.last_batch_sequences)
        self._before_step()
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
        self.busy_s += seconds
        self._outbox.stepped(selection.units, seconds)
        self.counters["steps"] += 1
        self.counters["units"] += selection.units
        if self.watch is not None:
            self.watch.stepped(
                self.counters["steps"], selection, at_s=ended_s, seconds=seconds, num_waiting=self._num_unserved
            )
        flight.note_ended(ended_s, seconds)
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
                known = outcome if isinstance(outcome, Outcome) else no_outcome(self._model, "collect", outcome)  # pyright: ignore[reportUnnecessaryIsInstance]  # plugins may be untyped
                self._apply(entry, known, now_s)

    def _apply(self, entry: Entry, outcome: Outcome[Any], now_s: float) -> None:
        state = entry.state
        if state.ended or entry.released:  # another sequence of the same request failed in this step
            return
        if outcome.error is not None:
            self.counters["failed_steps"] += 1
            log_cause(outcome.error, state.request.request_id, state.log_fields)
            self.fail(state, outcome.error)
            return
        if outcome.output is not None:
            observe_output(self._budget, state, now_s)
            self._events.append(Increment(request_id=state.request.request_id, output=outcome.output))
        if outcome.done:
            self._release(entry, DONE)
            state.num_open -= 1
            self._finish_if_complete(state)

    def _finish_if_complete(self, state: RequestState) -> None:
        if state.complete and not state.ended:
            observe_end(self._budget, state, self._clock())
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
        self.deadlines.drop(state)
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
