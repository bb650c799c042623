"""A step loop without threads: a fake clock and model, real admission, and every promise about events checked on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from sixfold.core.batching.admission import Admission, Ticket
from sixfold.core.batching.budget import Objective, StepBudget
from sixfold.core.batching.entry import RequestState
from sixfold.core.batching.job_scheduler import JobScheduler
from sixfold.core.batching.scheduler import Scheduler
from sixfold.core.batching.step_loop import StepLoop
from sixfold.core.errors import RequestError
from sixfold.core.messages import Event, Failed, Finished, Increment, Priority, Request
from tests.fakes import FakeClock, FakeInput, FakeStepModel


class LoopHarness:
    """Drives a `StepLoop` by hand; is its outbox.

    Args:
        model: Stepped; its clock is the loop's.
        patience_s: As in `Limits`.
        max_running_sequences: As in `Limits`.
        max_queue_units: As in `Limits`.
        max_queue_s: As in `Limits`.
        objective: Of the budget.
    """

    def __init__(
        self,
        model: FakeStepModel,
        *,
        patience_s: float = 10.0,
        max_running_sequences: int = 256,
        max_queue_units: int = 1_000_000,
        max_queue_s: float | None = None,
        objective: Objective | None = None,
    ) -> None:
        self.model = model
        self.clock: FakeClock = model.clock
        self.admission = Admission(max_queue_units, max_queue_s, clock=self.clock)
        self.budget = StepBudget(model.step_range, objective if objective is not None else Objective())
        scheduler = JobScheduler if model.step_range.whole_jobs else Scheduler
        self.scheduler = scheduler(
            model, self.budget, max_running_sequences=max_running_sequences, patience_s=patience_s
        )
        self.loop = StepLoop(model, self.scheduler, self.budget, self, self.clock)
        self.events: dict[str, list[Event]] = {}
        self.ended_s: dict[str, float] = {}
        self.tickets: dict[str, Ticket] = {}
        self.states: dict[str, RequestState] = {}
        self.unprepared: dict[str, list[Callable[[], None]]] = {}
        self._order = 0
        self._num_increments: Counter[tuple[str, int]] = Counter()

    # The outbox.

    def emit(self, events: tuple[Event, ...]) -> None:
        for event in events:
            so_far = self.events[event.request_id]
            assert event.request_id not in self.ended_s, "an event after the last"
            if isinstance(event, Increment):
                self._check_order(event)
            else:
                self.ended_s[event.request_id] = self.clock()
            so_far.append(event)

    def finish(self, states: Sequence[RequestState]) -> None:
        for state in states:
            end = self.model.finish(state.request, [entry.sequence for entry in state.entries])
            finished: Finished[Any] = Finished(
                request_id=state.request.request_id,
                result=end.result,
                usage=end.usage,
                timing=state.timing(),
                trace=state.trace(),
            )
            self.emit((finished,))

    def granted(self, grants: Sequence[tuple[RequestState, int]]) -> None:
        found = [(self.tickets.get(state.request.request_id), units) for state, units in grants]
        self.admission.consume([(ticket, units) for ticket, units in found if ticket is not None])

    def stepped(self, units: int, seconds: float) -> None:
        self.admission.observe_step(units, seconds)

    def ended(self, state: RequestState) -> None:
        request_id = state.request.request_id
        self.admission.leave(self.tickets.pop(request_id), finished=state.complete)
        del self.states[request_id]

    def _check_order(self, event: Increment[Any]) -> None:
        place = (event.request_id, event.output.sequence_index)
        assert event.output.step_index == self._num_increments[place], "an increment twice or out of order"
        self._num_increments[place] += 1

    # What a test does.

    def submit(
        self,
        request_id: str,
        input: FakeInput,
        *,
        tenant: str = "a",
        weight: float = 1.0,
        priority: Priority = Priority.STANDARD,
        deadline_s: float | None = None,
        prepare: bool = True,
        trace_id: str | None = None,
    ) -> None:
        """Admits a request and (unless told otherwise) prepares all its pieces; raises QueueFull like the manager."""
        request = Request(
            request_id=request_id,
            input=input,
            tenant=tenant,
            weight=weight,
            priority=priority,
            arrived_s=self.clock(),
            deadline_s=deadline_s,
            trace_id=trace_id,
        )
        ticket = self.admission.admit(
            self.model.estimate_units(request),
            within_s=None if deadline_s is None else deadline_s - self.clock(),
            tenant=tenant,
            priority=priority,
            weight=weight,
        )
        self.tickets[request_id] = ticket
        self.events[request_id] = []
        state = RequestState(request, ticket.remaining_units, self._order)
        self.states[request_id] = state
        self._order += 1
        pieces = self.model.split(request)
        self.loop.inbox.append(lambda loop: loop.open(state, len(pieces)))
        self.unprepared[request_id] = [lambda piece=piece: self._prepare(state, piece) for piece in pieces]  # type: ignore[misc]
        if prepare:
            while self.prepare_piece(request_id):
                pass

    def prepare_piece(self, request_id: str) -> bool:
        """The pool has prepared the next piece of a request; False when there is none left."""
        pieces = self.unprepared.get(request_id, [])
        if not pieces:
            self.unprepared.pop(request_id, None)
            return False
        pieces.pop(0)()
        return True

    def _prepare(self, state: RequestState, piece: object) -> None:
        try:
            sequences = self.model.prepare(state.request, piece)
        except RequestError as error:
            failure = error
            self.loop.inbox.append(lambda loop: loop.fail(state, failure))
        else:
            self.loop.inbox.append(lambda loop: loop.add_prepared(state, sequences))

    def cancel(self, request_id: str) -> None:
        self.loop.inbox.append(lambda loop: loop.cancel(request_id))

    def run(self, num_steps: int = 1) -> None:
        for _ in range(num_steps):
            self.loop.run_once()

    def run_until_idle(self, max_turns: int = 10_000) -> int:
        """Turns until nothing is open; returns how many. Fails after ``max_turns``: something starved."""
        for turn in range(max_turns):
            self.loop.run_once()
            if self.loop.idle and not self.loop.inbox:
                return turn + 1
        raise AssertionError(f"still open after {max_turns} turns: {sorted(self.states)[:10]}")

    def run_until_ended(self, request_id: str, max_turns: int = 10_000) -> int:
        """Turns until this request has ended; returns how many."""
        for turn in range(max_turns):
            self.loop.run_once()
            if request_id in self.ended_s:
                return turn + 1
        raise AssertionError(f"{request_id} has not ended after {max_turns} turns")

    def last_event(self, request_id: str) -> Event:
        return self.events[request_id][-1]

    def finished(self, request_id: str) -> bool:
        events = self.events[request_id]
        return bool(events) and isinstance(events[-1], Finished)

    def error_of(self, request_id: str) -> RequestError:
        last = self.last_event(request_id)
        assert isinstance(last, Failed), f"{request_id} ended with {last}"
        return last.error

    def assert_nothing_leaked(self) -> None:
        """Every ledger is empty; call when idle."""
        assert self.loop.idle
        assert not self.loop.has_work
        assert self.loop.num_running == 0
        assert self.loop.num_waiting == 0
        assert self.loop.next_deadline_s is None
        assert self.scheduler.queue.is_empty
        assert self.admission.queued_units == 0
        assert self.admission.num_requests == 0
        assert not self.tickets
        assert self.model.num_unreleased == 0
        if self.model.memory_units is not None:
            assert self.model.free_units == self.model.memory_units
        assert all(isinstance(events[-1], Finished | Failed) for events in self.events.values())
