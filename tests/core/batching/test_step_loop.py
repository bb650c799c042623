"""One turn of the step loop: cancels, deadlines, failures, events and what is given back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sixfold.core.batching.model import DeviceLost, Granted, Outcome, StepRange
from sixfold.core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    QueueFull,
    RequestCancelled,
    StepFailed,
    WorkerDied,
)
from sixfold.core.messages import Cost, Failed, Finished, Increment
from tests.core.batching.loop_harness import LoopHarness
from tests.fakes import (
    FakeInput,
    FakeOutput,
    FakePiece,
    FakeSequence,
    FakeStepModel,
    FakeWork,
    many_sequences,
    one_sequence,
)

LONG = FakeWork(num_steps=1000)


def test_increments_come_in_order_and_the_result_last() -> None:
    harness = LoopHarness(FakeStepModel())
    harness.submit("r", one_sequence(FakeWork(num_steps=3)))
    harness.run_until_idle()
    assert [type(event) for event in harness.events["r"]] == [Increment, Increment, Increment, Finished]
    harness.assert_nothing_leaked()


def test_a_cancelled_request_leaves_before_the_next_step() -> None:
    harness = LoopHarness(FakeStepModel())
    harness.submit("stays", one_sequence(LONG))
    harness.submit("leaves", many_sequences(LONG, 3))
    harness.run(2)
    harness.cancel("leaves")
    harness.run()
    assert isinstance(harness.error_of("leaves"), RequestCancelled)
    assert {sequence.request_id for sequence, _units in harness.model.batches[-1]} == {"stays"}
    assert harness.model.num_unreleased == 1


def test_a_cancel_after_the_end_changes_nothing() -> None:
    harness = LoopHarness(FakeStepModel())
    harness.submit("r", one_sequence(FakeWork()))
    harness.run_until_idle()
    harness.cancel("r")
    harness.cancel("never there")
    harness.run()
    assert harness.finished("r")


def test_a_request_past_its_deadline_leaves_before_the_next_step_waiting_or_running() -> None:
    harness = LoopHarness(FakeStepModel(), max_running_sequences=1)
    harness.submit("runs", one_sequence(LONG), deadline_s=harness.clock() + 1.0)
    harness.submit("waits", one_sequence(LONG), deadline_s=harness.clock() + 1.0)
    harness.submit("is prepared", one_sequence(LONG), deadline_s=harness.clock() + 1.0, prepare=False)
    harness.run(3)
    assert not harness.ended_s
    harness.clock.advance(1.0)
    num_batches = len(harness.model.batches)
    harness.run()
    for request_id in ("runs", "waits", "is prepared"):
        assert isinstance(harness.error_of(request_id), DeadlineExceeded)
    assert len(harness.model.batches) == num_batches
    harness.assert_nothing_leaked()


def test_sequences_prepared_after_the_end_of_their_request_are_released_and_never_stepped() -> None:
    harness = LoopHarness(FakeStepModel())
    piece = FakePiece(sequences=(LONG,))
    harness.submit("r", FakeInput(pieces=(piece, piece)), prepare=False)
    harness.prepare_piece("r")
    harness.run(2)
    harness.cancel("r")
    harness.run()
    harness.prepare_piece("r")
    harness.run(2)
    assert len(harness.model.batches) == 2
    harness.assert_nothing_leaked()


def test_the_first_pieces_are_stepped_before_the_last_is_prepared() -> None:
    harness = LoopHarness(FakeStepModel())
    piece = FakePiece(sequences=(FakeWork(),))
    harness.submit("r", FakeInput(pieces=(piece, piece)), prepare=False)
    harness.prepare_piece("r")
    harness.run(3)
    assert len(harness.model.batches) == 1
    assert not harness.ended_s
    harness.prepare_piece("r")
    harness.run_until_idle()
    assert harness.finished("r")


def test_a_failing_piece_fails_its_request_and_no_other() -> None:
    harness = LoopHarness(FakeStepModel())
    harness.submit("bad", FakeInput(pieces=(FakePiece(sequences=(LONG,)), FakePiece(fails=True))))
    harness.submit("good", one_sequence(FakeWork(num_steps=2)))
    harness.run_until_idle()
    assert isinstance(harness.error_of("bad"), InvalidRequest)
    assert harness.finished("good")
    harness.assert_nothing_leaked()


def test_a_request_without_sequences_finishes_without_a_step() -> None:
    harness = LoopHarness(FakeStepModel())
    harness.submit("r", FakeInput(pieces=(FakePiece(),)))
    harness.run_until_idle()
    assert harness.finished("r")
    assert not harness.model.batches


@pytest.mark.parametrize("num_poisoned", [1, 2])
def test_bisection_fails_only_the_requests_that_poison_a_step(num_poisoned: int) -> None:
    harness = LoopHarness(FakeStepModel())
    for index in range(16):
        poisoned_at = 1 if index in (5, 11)[:num_poisoned] else None
        harness.submit(f"r{index}", one_sequence(FakeWork(num_steps=3, poisoned_at=poisoned_at)))
    harness.run(2)
    # 2 k log2(n) further steps at most for k culprits among n, and the two steps themselves.
    assert harness.model.num_step_calls <= 2 + 2 * num_poisoned * 4
    harness.run_until_idle()
    for index in range(16):
        if index in (5, 11)[:num_poisoned]:
            assert isinstance(harness.error_of(f"r{index}"), StepFailed)
            assert len(harness.events[f"r{index}"]) == 2  # its one good step, then the failure
        else:
            assert harness.finished(f"r{index}")
            assert len(harness.events[f"r{index}"]) == 4
    harness.assert_nothing_leaked()


def test_a_poisoned_sequence_takes_the_other_sequences_of_its_request_with_it() -> None:
    harness = LoopHarness(FakeStepModel())
    works = (FakeWork(num_steps=5), FakeWork(num_steps=5, poisoned_at=1), FakeWork(num_steps=5))
    harness.submit("r", FakeInput(pieces=(FakePiece(sequences=works),)))
    harness.run(2)
    assert isinstance(harness.error_of("r"), StepFailed)
    harness.assert_nothing_leaked()


def test_a_lost_device_is_told_to_the_caller_and_fail_all_answers_everybody() -> None:
    class LostModel(FakeStepModel):
        def step(self, batch: Sequence[Granted[FakeSequence]]) -> Sequence[Outcome[FakeOutput]]:
            raise DeviceLost("gone")

    harness = LoopHarness(LostModel())
    harness.submit("r", many_sequences(LONG, 3))
    harness.submit("s", one_sequence(LONG))
    with pytest.raises(DeviceLost):
        harness.run()
    harness.loop.fail_all(WorkerDied("gone"))
    assert isinstance(harness.error_of("r"), WorkerDied)
    assert isinstance(harness.error_of("s"), WorkerDied)
    harness.assert_nothing_leaked()


def test_everybody_is_answered_even_when_releasing_fails_on_the_lost_device() -> None:
    class BrokenModel(FakeStepModel):
        def release(self, sequence: FakeSequence) -> None:
            raise RuntimeError("the device is gone")

    harness = LoopHarness(BrokenModel())
    for request_id in ("r", "s", "t"):
        harness.submit(request_id, one_sequence(LONG))
    harness.run()
    harness.loop.fail_all(WorkerDied("gone"))
    assert all(isinstance(harness.error_of(request_id), WorkerDied) for request_id in ("r", "s", "t"))


def test_a_model_that_returns_too_few_outcomes_is_lost_rather_than_trusted() -> None:
    class ShortModel(FakeStepModel):
        def step(self, batch: Sequence[Granted[FakeSequence]]) -> Sequence[Outcome[FakeOutput]]:
            none: list[Outcome[FakeOutput]] = [Outcome()]
            return none * (len(batch) - 1)

    harness = LoopHarness(ShortModel())
    harness.submit("r", one_sequence(LONG))
    with pytest.raises(DeviceLost, match="0 outcomes for 1"):
        harness.run()


def test_ended_requests_with_far_deadlines_are_forgotten() -> None:
    harness = LoopHarness(FakeStepModel())
    harness.submit("stays", one_sequence(FakeWork(num_steps=100_000)), deadline_s=harness.clock() + 1e9)
    for index in range(500):
        harness.submit(f"r{index}", one_sequence(FakeWork()), deadline_s=harness.clock() + 1e6)
        harness.run()
    assert len(harness.loop.deadlines) < 200


def test_a_request_that_never_fits_the_memory_fails_alone_with_its_sequences() -> None:
    harness = LoopHarness(FakeStepModel(memory_units=10))
    works = (FakeWork(step_units=11), FakeWork(), FakeWork())
    harness.submit("too large", FakeInput(pieces=(FakePiece(sequences=works),)))
    harness.submit("fits", one_sequence(FakeWork()))
    harness.run_until_idle()
    assert isinstance(harness.error_of("too large"), InvalidRequest)
    assert harness.error_of("too large").code == "input_too_large"
    assert harness.finished("fits")
    harness.assert_nothing_leaked()


def test_a_full_queue_answers_at_once_and_takes_again_when_work_is_done() -> None:
    harness = LoopHarness(FakeStepModel(), max_queue_units=10)
    harness.submit("r", many_sequences(FakeWork(), 10))
    with pytest.raises(QueueFull):
        harness.submit("s", one_sequence(FakeWork()))
    harness.run_until_idle()
    harness.submit("s", one_sequence(FakeWork()))
    harness.run_until_idle()
    assert harness.finished("s")


def test_the_last_event_tells_where_the_time_went() -> None:
    harness = LoopHarness(FakeStepModel(fixed_s=1.0, unit_s=0.0), max_running_sequences=1)
    harness.submit("first", one_sequence(FakeWork(num_steps=2)))
    harness.submit("second", one_sequence(FakeWork(num_steps=3)), prepare=False)
    harness.clock.advance(0.5)
    harness.prepare_piece("second")
    harness.run_until_idle()
    last = harness.last_event("second")
    assert isinstance(last, Failed | Finished)
    assert isinstance(last, Finished)
    assert last.timing.prepare_s == pytest.approx(0.5)
    assert last.timing.queue_s == pytest.approx(2.0)
    assert last.timing.inference_s == pytest.approx(3.0)
    assert last.timing.num_steps == 3


class AwayModel(FakeStepModel):
    """Sequences work elsewhere from their first step on and come back when they are told to."""

    def __init__(self) -> None:
        super().__init__(fixed_s=0.0, unit_s=0.0, step_range=StepRange(min_units=1, initial_units=99, max_units=99))
        self.away: set[FakeSequence] = set()
        self.back: list[FakeSequence] = []

    def cost(self, sequence: FakeSequence) -> Cost | None:
        return None if sequence in self.away else Cost(units=10, min_units=10)

    def reserve(self, sequence: FakeSequence, units: int) -> int:
        return units

    def step(self, batch: Sequence[Granted[FakeSequence]]) -> Sequence[Outcome[FakeOutput]]:
        self.away.update(granted.sequence for granted in batch)
        nothing_yet: Outcome[FakeOutput] = Outcome()
        return [nothing_yet] * len(batch)

    def collect(self) -> Sequence[tuple[FakeSequence, Outcome[FakeOutput]]]:
        back, self.back = self.back, []
        for sequence in back:
            sequence.num_emitted = sequence.work.num_steps
        return [(sequence, Outcome(done=True)) for sequence in back]


def test_time_that_sequences_spend_elsewhere_counts_for_the_drain_rate_and_idle_time_does_not() -> None:
    model = AwayModel()
    harness = LoopHarness(model)
    for round_ in range(3):
        harness.submit(f"r{round_}", one_sequence(FakeWork(num_steps=10)))
        harness.run(2)
        model.clock.advance(1.0)
        harness.run()
        model.clock.advance(1.0)
        model.back = list(model.away)
        harness.run()
        model.away.clear()
        harness.assert_nothing_leaked()
        model.clock.advance(50.0)  # nobody is there
    # Ten units in two seconds; forgetting old seconds faster than old units moves it by some percent.
    assert harness.admission.units_per_s == pytest.approx(5.0, rel=0.2)
