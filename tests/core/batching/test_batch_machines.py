"""More random lives around the batch manager: whole jobs, order within a class, and the real threads with dying replicas."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from sixfold.core.batching.model import DeviceLost, Granted, Outcome, StepRange
from sixfold.core.errors import NotReady, QueueFull, RequestCancelled, RequestError, WorkerDied
from sixfold.core.messages import Failed, Finished, Priority
from tests.core.batching.loop_harness import LoopHarness
from tests.core.batching.manager_rig import WAIT_S, GatedModel, Rig
from tests.core.batching.test_step_loop_machine import BUDGET_UNITS, MEMORY_UNITS, StepLoopMachine, fault
from tests.fakes import FakeInput, FakeOutput, FakePiece, FakeSequence, FakeStepModel, FakeWork, one_sequence

_MAX_QUEUE_UNITS = 60


class WholeJobsModel(FakeStepModel):
    """Its sequences are jobs: the scheduler of jobs chooses its steps."""

    def __init__(self, *, memory_units: int | None = None, step_range: StepRange | None = None) -> None:
        bounds = StepRange(min_units=1, initial_units=BUDGET_UNITS, max_units=BUDGET_UNITS, whole_jobs=True)
        super().__init__(memory_units=memory_units, step_range=bounds)


class WholeJobsMachine(StepLoopMachine):
    """Everything that holds of the fair order's loop holds of the jobs' as well."""

    make_model = WholeJobsModel


class ArrivalOrderMachine(RuleBasedStateMachine):
    """One key, one class, requests alike: whoever came first starts first, whatever leaves meanwhile."""

    waiting: Bundle[str] = Bundle("waiting")

    @rule(
        whole_jobs=st.booleans(), memory_units=st.sampled_from([None, 8])
    )  # 8: three that run take it from each other
    @precondition(lambda self: not hasattr(self, "harness"))
    def begin(self, whole_jobs: bool, memory_units: int | None) -> None:
        make = WholeJobsModel if whole_jobs else FakeStepModel
        self.model: FakeStepModel = make(memory_units=memory_units)
        self.harness = LoopHarness(
            self.model, patience_s=0.5, max_running_sequences=3, max_queue_units=_MAX_QUEUE_UNITS
        )
        self.num_arrived = 0

    @precondition(lambda self: hasattr(self, "harness"))
    @rule(target=waiting, priority=st.just(Priority.STANDARD), num_steps=st.integers(1, 3))
    def arrive(self, priority: Priority, num_steps: int) -> str:
        request_id = f"r{self.num_arrived}"
        work = FakeWork(num_steps=num_steps, step_units=2)
        try:
            self.harness.submit(request_id, one_sequence(work), priority=priority)
        except QueueFull:
            return "refused"
        self.num_arrived += 1
        return request_id

    @precondition(lambda self: hasattr(self, "harness"))
    @rule(request_id=consumes(waiting))
    def cancel(self, request_id: str) -> None:
        self.harness.cancel(request_id)

    @precondition(lambda self: hasattr(self, "harness"))
    @rule(count=st.integers(1, 4))
    def turn(self, count: int) -> None:
        self.harness.run(count)

    @precondition(lambda self: hasattr(self, "harness"))
    @rule(seconds=st.sampled_from([0.01, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.harness.clock.advance(seconds)

    @invariant()
    def who_came_first_started_first(self) -> None:
        if not hasattr(self, "harness"):
            return
        started: dict[int, None] = {}
        for batch in self.model.batches:
            for number in sorted(int(sequence.request_id[1:]) for sequence, _units in batch):
                started.setdefault(number)
        assert list(started) == sorted(started)

    @invariant()
    def what_is_admitted_is_bounded(self) -> None:
        if hasattr(self, "harness"):
            admission = self.harness.admission
            assert admission.queued_units <= _MAX_QUEUE_UNITS
            assert (admission.num_requests == 0) == (not self.harness.states)

    def teardown(self) -> None:
        if hasattr(self, "harness"):
            self.harness.run_until_idle(500)
            self.harness.assert_nothing_leaked()


class MortalModel(GatedModel):
    """Works when the gate is open, and loses its device when it is told so."""

    def __init__(self) -> None:
        super().__init__(memory_units=MEMORY_UNITS)
        self.is_lost = False
        self.gate.set()

    def interrupt(self) -> None:
        """Nothing to interrupt: a test opens the gate before it waits."""

    def step(self, batch: Sequence[Granted[FakeSequence]]) -> Sequence[Outcome[FakeOutput]]:
        outcomes = super().step(batch)
        if self.is_lost:
            raise DeviceLost("gone")
        return outcomes


_WORKS = st.builds(
    FakeWork,
    divisible_units=st.sampled_from([0, 0, 5, 45]),  # 45 never fits the memory
    num_steps=st.integers(1, 3),
    step_units=st.sampled_from([1, 7, 20]),
    poisoned_at=st.sampled_from([None] * 5 + [0]),
)
_PIECES = st.one_of(
    st.builds(FakePiece, sequences=st.lists(_WORKS, min_size=1, max_size=3).map(tuple)), st.just(FakePiece(fails=True))
)
_INPUTS = st.builds(FakeInput, pieces=st.lists(_PIECES, min_size=1, max_size=3).map(tuple))


def is_faulty(piece: FakePiece) -> bool:
    """Whether its request fails, if nothing ends it before."""
    return piece.fails or any(fault(work) for work in piece.sequences)


class ManagerMachine(RuleBasedStateMachine):
    """Clients, an operator and fate around one replica after another, each with its real device thread and pool."""

    open_ids: Bundle[str] = Bundle("open_ids")

    def __init__(self) -> None:
        super().__init__()
        self.num_submitted = 0
        self.replicas: list[Rig] = []
        self.replace()

    def replace(self) -> None:
        """What `ReplicaSet` does when a worker has ended."""
        self.model = MortalModel()
        self.rig = Rig(self.model, max_queue_units=_MAX_QUEUE_UNITS, max_running_sequences=4)
        self.lost = threading.Event()
        self.rig.manager.start(self.lost.set)
        self.replicas.append(self.rig)
        self.accepted: list[str] = []
        self.cancelled: set[str] = set()
        self.inputs: dict[str, FakeInput] = {}

    @rule(target=open_ids, input=_INPUTS, tenant=st.sampled_from("xy"), priority=st.sampled_from(Priority))
    def submit(self, input: FakeInput, tenant: str, priority: Priority) -> str:
        request_id = f"r{self.num_submitted}"
        self.num_submitted += 1
        try:
            self.rig.submit(request_id, input, tenant=tenant, priority=priority)
        except QueueFull as error:
            assert error.retry_after_s is not None and error.retry_after_s > 0.0
            return "refused"
        self.accepted.append(request_id)
        self.inputs[request_id] = input
        return request_id

    @rule(request_id=consumes(open_ids))
    def cancel(self, request_id: str) -> None:
        self.cancelled.add(request_id)
        self.rig.manager.cancel(request_id)

    @rule()
    def the_device_stalls(self) -> None:
        self.model.gate.clear()

    @rule()
    def the_device_goes_on(self) -> None:
        self.model.gate.set()

    @rule()
    def settle(self) -> None:
        self.model.gate.set()
        self.check_ends()

    @rule()
    def the_replica_dies_and_is_replaced(self) -> None:
        self.model.is_lost = True
        self.model.gate.set()
        self.submit_a_last_one()
        assert self.lost.wait(WAIT_S)
        self.check_ends(because=WorkerDied)
        self.refuses(WorkerDied)
        self.rig.close()
        assert self.model.num_closed == 1
        self.replace()

    def submit_a_last_one(self) -> None:
        """So that there is a step to die in: all others may end without one."""
        work = one_sequence(FakeWork())
        for _ in range(1000):
            try:
                self.rig.submit("last", work)
            except WorkerDied:
                return
            except QueueFull:
                for request_id in self.accepted:
                    self.rig.events.last(request_id)  # their ends make room, a moment later
            else:
                self.accepted.append("last")
                self.inputs["last"] = work
                return
        raise AssertionError("ended requests keep their room")

    @rule()
    def the_replica_is_drained_and_replaced(self) -> None:
        self.model.gate.set()
        assert self.rig.manager.drain(WAIT_S)
        self.check_ends()
        self.refuses(NotReady)
        assert self.model.num_unreleased == 0
        assert self.model.free_units == MEMORY_UNITS
        self.rig.close()
        assert self.model.num_closed == 1
        self.replace()

    def refuses(self, kind: type[RequestError]) -> None:
        try:
            self.rig.submit("late", one_sequence(FakeWork()))
        except kind:
            return
        raise AssertionError("a request is taken after the end")

    def check_ends(self, because: type[RequestError] | None = None) -> None:
        """Every request that was taken has ended, once, and in a way that something explains."""
        for request_id in self.accepted:
            last = self.rig.events.last(request_id)
            self.rig.events.assert_one_last_event(request_id)
            if isinstance(last, Finished):
                continue
            assert isinstance(last, Failed)
            if isinstance(last.error, NotReady | WorkerDied):
                assert because is not None and isinstance(last.error, because)
            elif isinstance(last.error, RequestCancelled):
                assert request_id in self.cancelled
            else:
                assert any(map(is_faulty, self.inputs[request_id].pieces))

    def teardown(self) -> None:
        self.model.gate.set()
        self.rig.close()
        self.check_ends(because=NotReady)
        assert self.model.num_unreleased == 0


TestWholeJobsMachine = WholeJobsMachine.TestCase
TestWholeJobsMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestArrivalOrderMachine = ArrivalOrderMachine.TestCase
TestArrivalOrderMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestManagerMachine = ManagerMachine.TestCase
TestManagerMachine.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
