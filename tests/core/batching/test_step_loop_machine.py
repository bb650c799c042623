"""Random arrivals, cancels, faults, deadlines and clock jumps: nothing leaks, nothing starves, nothing is served twice."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from sixfold.core.batching.model import StepRange
from sixfold.core.errors import DeadlineExceeded, InvalidRequest, QueueFull, RequestCancelled, RequestError, StepFailed
from sixfold.core.messages import Failed, Finished, Priority
from tests.core.batching.loop_harness import LoopHarness
from tests.fakes import FakeAheadModel, FakeInput, FakePiece, FakeStepModel, FakeWork

BUDGET_UNITS = 16
MEMORY_UNITS = 40

WORKS = st.builds(
    FakeWork,
    divisible_units=st.sampled_from([0, 0, 1, 5, 20, 45]),  # 45 never fits the memory
    num_steps=st.integers(1, 4),
    step_units=st.sampled_from([1, 1, 2, 7, 20]),  # 20 is more than the budget
    key=st.sampled_from([None, None, "a", "b"]),
    poisoned_at=st.sampled_from([None] * 7 + [0, 1]),
    error_at=st.sampled_from([None] * 7 + [0, 1]),
    looks_back=st.sampled_from([False, False, True]),
    ends_unforeseen=st.booleans(),
)
PIECES = st.one_of(
    st.builds(FakePiece, sequences=st.lists(WORKS, max_size=4).map(tuple)),
    st.builds(FakePiece, sequences=WORKS.map(lambda work: (work,) * 12)),
    st.just(FakePiece(fails=True)),
)
INPUTS = st.builds(FakeInput, pieces=st.lists(PIECES, min_size=1, max_size=4).map(tuple))


class StepLoopMachine(RuleBasedStateMachine):
    """A client, a pool and a clock that behave at random around one step loop."""

    open_ids: Bundle[str] = Bundle("open_ids")
    make_model: type[FakeStepModel] = FakeStepModel

    def __init__(self) -> None:
        super().__init__()
        self.model = self.make_model(
            memory_units=MEMORY_UNITS,
            step_range=StepRange(min_units=1, initial_units=BUDGET_UNITS, max_units=BUDGET_UNITS),
        )
        self.harness = LoopHarness(self.model, patience_s=0.5, max_running_sequences=6, max_queue_units=2_000)
        self.inputs: dict[str, FakeInput] = {}
        self.cancelled: set[str] = set()
        self.with_deadline: set[str] = set()
        self.num_batches_seen = 0

    @rule(
        target=open_ids,
        input=INPUTS,
        tenant=st.sampled_from(["x", "y", "fresh"]),
        weight=st.sampled_from([0.5, 1.0, 3.0]),
        priority=st.sampled_from(Priority),
        patience_s=st.one_of(st.none(), st.floats(-0.1, 0.6)),
    )
    def arrive(self, input: FakeInput, tenant: str, weight: float, priority: Priority, patience_s: float | None) -> str:
        request_id = f"r{len(self.inputs)}"
        self.inputs[request_id] = input
        deadline_s = None if patience_s is None else self.harness.clock() + patience_s
        if deadline_s is not None:
            self.with_deadline.add(request_id)
        try:
            self.harness.submit(
                request_id,
                input,
                tenant=tenant if tenant != "fresh" else request_id,
                weight=weight,
                priority=priority,
                deadline_s=deadline_s,
                prepare=False,
            )
        except QueueFull as error:
            assert error.retry_after_s is not None and error.retry_after_s > 0.0
            assert self.harness.admission.num_requests > 0
            del self.inputs[request_id]
            return "refused"
        return request_id

    @rule(request_id=open_ids)
    def prepare_one_piece(self, request_id: str) -> None:
        self.harness.prepare_piece(request_id)

    @rule(request_id=consumes(open_ids))
    def cancel(self, request_id: str) -> None:
        if request_id not in self.inputs:
            return
        self.cancelled.add(request_id)
        self.harness.cancel(request_id)

    @rule(count=st.integers(1, 5))
    def turn(self, count: int) -> None:
        for _ in range(count):
            self.harness.run()
            now_s = self.harness.clock()
            for request_id, state in self.harness.states.items():
                assert request_id not in self.cancelled, "a cancelled request is still there after a turn"
                # the step that ended now may have passed the deadline; a whole turn after it may not
                deadline_s = state.request.deadline_s
                assert deadline_s is None or deadline_s > now_s - self.longest_step_s()

    def longest_step_s(self) -> float:
        # a poisoned batch is bisected, so one turn may run many steps, also of the step that was begun on top
        return 2 * 2 * 6 * 6 * (self.model.fixed_s + self.model.unit_s * (BUDGET_UNITS + 20))

    @rule(seconds=st.sampled_from([0.01, 0.3, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.harness.clock.advance(seconds)

    @precondition(lambda self: len(self.inputs) > 0)
    @rule()
    def settle(self) -> None:
        self.finish_everything()

    @invariant()
    def a_step_keeps_its_budget_except_for_a_first_indivisible_sequence(self) -> None:
        for batch in self.model.batches[self.num_batches_seen :]:
            units = sum(units for _sequence, units in batch)
            assert len(batch) <= 6
            assert units <= BUDGET_UNITS or len(batch) == 1
        self.num_batches_seen = len(self.model.batches)

    @invariant()
    def memory_is_counted_exactly(self) -> None:
        held = sum(sequence.num_held_units for sequence in self.model.prepared)
        assert held + self.model.free_units == MEMORY_UNITS

    def finish_everything(self) -> None:
        for request_id in list(self.harness.unprepared):
            while self.harness.prepare_piece(request_id):
                pass
        self.harness.run_until_idle(3_000)
        self.harness.assert_nothing_leaked()
        for request_id, input in self.inputs.items():
            self.check_end(request_id, input)

    def check_end(self, request_id: str, input: FakeInput) -> None:
        last = self.harness.last_event(request_id)
        works = [work for piece in input.pieces for work in piece.sequences]
        if isinstance(last, Finished):
            assert not any(piece.fails for piece in input.pieces)
            assert not any(fault(work) for work in works)
            num_steps = sum(work.num_steps for work in works)
            assert last.usage.counts == {"steps": num_steps}
            assert len(self.harness.events[request_id]) == num_steps + 1
            return
        assert isinstance(last, Failed)
        self.check_error(request_id, last.error, input, works)

    def check_error(self, request_id: str, error: RequestError, input: FakeInput, works: list[FakeWork]) -> None:
        if isinstance(error, RequestCancelled):
            assert request_id in self.cancelled
        elif isinstance(error, DeadlineExceeded):
            assert request_id in self.with_deadline
        elif isinstance(error, InvalidRequest):
            assert any(piece.fails for piece in input.pieces) or any(work.total_units > MEMORY_UNITS for work in works)
        elif isinstance(error, StepFailed):
            assert any(work.poisoned_at is not None and work.poisoned_at < work.num_steps for work in works)
        else:
            assert any(work.error_at is not None and work.error_at < work.num_steps for work in works)

    def teardown(self) -> None:
        self.finish_everything()


def fault(work: FakeWork) -> bool:
    """Whether a sequence with this work fails, if nothing ends it before."""
    faults = [at for at in (work.poisoned_at, work.error_at) if at is not None]
    return any(at < work.num_steps for at in faults) or work.total_units > MEMORY_UNITS


class StepsAheadMachine(StepLoopMachine):
    """The same on a model that begins a step before the one before is settled."""

    make_model = FakeAheadModel


TestStepLoopMachine = StepLoopMachine.TestCase
TestStepLoopMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestStepsAheadMachine = StepsAheadMachine.TestCase
TestStepsAheadMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
