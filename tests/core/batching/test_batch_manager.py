"""The manager with its real thread and pool: every submitted request gets exactly one last event, whatever races."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from sixfold.core.batching.model import DeviceLost, Finish, Granted, Outcome
from sixfold.core.errors import InvalidRequest, NotReady, QueueFull, RequestCancelled, StepFailed, WorkerDied
from sixfold.core.messages import Finished, Request
from tests.core.batching.manager_rig import WAIT_S, GatedModel, Rig
from tests.fakes import (
    FakeClock,
    FakeInput,
    FakeOutput,
    FakePiece,
    FakeSequence,
    FakeStepModel,
    FakeWork,
    many_sequences,
    one_sequence,
)


@pytest.fixture
def rigs() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(model: FakeStepModel, **limits: Any) -> Rig:
        made.append(Rig(model, **limits))
        return made[-1]

    yield make
    for rig in made:
        if isinstance(rig.model, GatedModel):
            rig.model.gate.set()
        rig.close()


def test_requests_are_served_through_the_pool_and_the_thread(rigs: Callable[..., Rig]) -> None:
    rig = rigs(FakeStepModel())
    rig.manager.start()
    for index in range(50):
        rig.submit(f"r{index}", many_sequences(FakeWork(num_steps=3), 2))
    for index in range(50):
        assert isinstance(rig.events.last(f"r{index}"), Finished)
        rig.events.assert_one_last_event(f"r{index}")
    assert rig.manager.drain(WAIT_S)
    assert rig.model.num_unreleased == 0


def test_a_cancel_during_a_step_takes_effect_after_that_step(rigs: Callable[..., Rig]) -> None:
    model = GatedModel()
    rig = rigs(model)
    rig.manager.start()
    rig.submit("r", one_sequence(FakeWork(num_steps=10**6)))
    assert model.in_step.wait(WAIT_S)
    rig.manager.cancel("r")
    model.gate.set()
    assert isinstance(rig.events.error("r"), RequestCancelled)
    assert len(model.batches) == 1
    assert rig.manager.drain(WAIT_S)
    assert model.num_unreleased == 0


def test_a_full_queue_and_a_full_pool_both_answer_from_submit(rigs: Callable[..., Rig]) -> None:
    model = GatedModel()
    rig = rigs(model, max_queue_units=100, max_pending_pieces=5)
    rig.submit("r", one_sequence(FakeWork(num_steps=95)))  # not started: it stays
    with pytest.raises(QueueFull):
        rig.submit("too much work", one_sequence(FakeWork(num_steps=6)))
    with pytest.raises(Exception, match="parts"):
        rig.submit("too many pieces", FakeInput(pieces=(FakePiece(sequences=()),) * 6))
    model.gate.set()
    rig.manager.start()
    rig.manager.cancel("r")
    assert rig.manager.drain(WAIT_S)
    assert set(rig.events.events) == {"r"}


def test_a_request_id_in_use_is_refused_and_an_ended_one_may_be_used_again(rigs: Callable[..., Rig]) -> None:
    model = GatedModel()
    rig = rigs(model)
    rig.manager.start()
    rig.submit("r", one_sequence(FakeWork()))
    with pytest.raises(InvalidRequest, match="in use"):
        rig.submit("r", one_sequence(FakeWork()))
    model.gate.set()
    rig.events.last("r")
    rig.submit("r", one_sequence(FakeWork()))
    rig.events.wait_for(lambda: sum(isinstance(event, Finished) for event in rig.events.events["r"]) == 2)


def test_an_empty_request_is_refused(rigs: Callable[..., Rig]) -> None:
    rig = rigs(FakeStepModel())
    with pytest.raises(InvalidRequest, match="empty"):
        rig.submit("r", FakeInput(pieces=()))


def test_draining_refuses_new_requests_and_finishes_the_running(rigs: Callable[..., Rig]) -> None:
    model = GatedModel()
    rig = rigs(model)
    rig.manager.start()
    rig.submit("r", one_sequence(FakeWork(num_steps=5)))
    assert model.in_step.wait(WAIT_S)
    assert not rig.manager.drain(0.0)
    with pytest.raises(NotReady):
        rig.submit("s", one_sequence(FakeWork()))
    model.gate.set()
    assert rig.manager.drain(WAIT_S)
    assert isinstance(rig.events.last("r"), Finished)


def test_close_answers_everything_and_closes_the_model_once(rigs: Callable[..., Rig]) -> None:
    model = GatedModel()
    rig = rigs(model, max_running_sequences=1)
    rig.manager.start()
    for index in range(20):
        rig.submit(f"r{index}", one_sequence(FakeWork(num_steps=10**4)))
    assert model.in_step.wait(WAIT_S)
    model.gate.set()
    rig.manager.close()
    for index in range(20):
        assert isinstance(rig.events.error(f"r{index}"), NotReady)
        rig.events.assert_one_last_event(f"r{index}")
    assert model.num_closed == 1
    with pytest.raises(NotReady):
        rig.submit("late", one_sequence(FakeWork()))


def test_close_answers_everything_even_if_the_thread_was_never_started(rigs: Callable[..., Rig]) -> None:
    rig = rigs(FakeStepModel())
    rig.submit("r", one_sequence(FakeWork()))
    rig.manager.close()
    assert isinstance(rig.events.error("r"), NotReady)


class LostModel(GatedModel):
    """Loses its device in the first step, and then fails in all it is asked."""

    error: BaseException = DeviceLost("gone")

    def step(self, batch: Sequence[Granted[FakeSequence]]) -> Sequence[Outcome[FakeOutput]]:
        self.in_step.set()
        assert self.gate.wait(WAIT_S)
        raise self.error

    def release(self, sequence: FakeSequence) -> None:
        raise RuntimeError("the device is gone")

    def stats(self) -> dict[str, float]:
        if self.gate.is_set():
            raise RuntimeError("the device is gone")
        return {}

    def close(self) -> None:
        super().close()
        raise RuntimeError("the device is gone")


class Panic(BaseException):
    """What a native extension raises when it breaks: no Exception."""


@pytest.mark.parametrize("error", [DeviceLost("gone"), Panic("broken")])
def test_a_lost_device_answers_all_with_worker_died_and_says_so_once(
    rigs: Callable[..., Rig], error: BaseException
) -> None:
    model = LostModel()
    model.error = error
    rig = rigs(model)
    lost = threading.Event()
    rig.manager.start(lost.set)
    for index in range(10):
        rig.submit(f"r{index}", one_sequence(FakeWork()))
    assert model.in_step.wait(WAIT_S)
    model.gate.set()
    assert lost.wait(WAIT_S)
    for index in range(10):
        assert isinstance(rig.events.error(f"r{index}"), WorkerDied)
        rig.events.assert_one_last_event(f"r{index}")
    with pytest.raises(WorkerDied):
        rig.submit("late", one_sequence(FakeWork()))
    rig.manager.close()
    assert model.num_closed == 1


def test_a_lost_device_is_told_though_what_is_still_asked_of_the_model_fails(rigs: Callable[..., Rig]) -> None:
    model = LostModel()
    rig = rigs(model)
    lost = threading.Event()
    rig.manager.start(lost.set)
    for index in range(3):
        rig.submit(f"r{index}", one_sequence(FakeWork()))
    assert model.in_step.wait(WAIT_S)
    rig.manager.cancel("r0")  # behind the step: it releases, which fails
    model.gate.set()
    assert lost.wait(WAIT_S)
    for index in range(3):
        rig.events.last(f"r{index}")
        rig.events.assert_one_last_event(f"r{index}")


@pytest.mark.parametrize("end", ["close", "lose"])
def test_a_submit_that_races_with_the_end_is_refused_or_answered(rigs: Callable[..., Rig], end: str) -> None:
    model: GatedModel = LostModel() if end == "lose" else GatedModel()
    rig = rigs(model)
    lost = threading.Event()
    rig.manager.start(lost.set)
    rig.submit("first", one_sequence(FakeWork()))
    assert model.in_step.wait(WAIT_S)
    submitted: list[list[str]] = [[] for _ in range(4)]
    started = threading.Barrier(5)

    def client(number: int) -> None:
        started.wait()
        for index in range(200):
            request_id = f"c{number}-{index}"
            try:
                rig.submit(request_id, one_sequence(FakeWork()))
            except (NotReady, WorkerDied):
                return
            submitted[number].append(request_id)
            if index % 3 == 0:
                rig.manager.cancel(request_id)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in clients:
        thread.start()
    started.wait()
    model.gate.set()
    rig.manager.close()
    for thread in clients:
        thread.join(WAIT_S)
    for request_id in [request_id for ids in submitted for request_id in ids]:
        rig.events.last(request_id)
        rig.events.assert_one_last_event(request_id)
    assert rig.manager.drain(WAIT_S)


def test_a_failing_finish_fails_its_request_alone(rigs: Callable[..., Rig]) -> None:
    class Unfinished(FakeStepModel):
        def finish(self, request: Request[FakeInput], sequences: Sequence[FakeSequence]) -> Finish[FakeOutput]:
            if request.request_id == "bad":
                raise RuntimeError("broken")
            return super().finish(request, sequences)

    rig = rigs(Unfinished())
    rig.manager.start()
    rig.submit("bad", one_sequence(FakeWork()))
    rig.submit("good", one_sequence(FakeWork()))
    assert isinstance(rig.events.error("bad"), StepFailed)
    assert isinstance(rig.events.last("good"), Finished)


def test_a_deadline_wakes_a_manager_that_has_nothing_to_step(rigs: Callable[..., Rig]) -> None:
    class SlowPrepare(FakeStepModel):
        gate = threading.Event()

        def prepare(self, request: Request[FakeInput], piece: object) -> Sequence[FakeSequence]:
            assert self.gate.wait(WAIT_S)
            return super().prepare(request, piece)

    model = SlowPrepare(FakeClock())
    rig = rigs(model)
    rig.manager.start()
    try:
        rig.submit("r", one_sequence(FakeWork()), deadline_s=model.clock() + 0.01)
        model.clock.advance(1.0)
        assert type(rig.events.error("r")).__name__ == "DeadlineExceeded"
    finally:
        model.gate.set()


def test_who_looks_during_a_step_sees_who_runs(rigs: Callable[..., Rig]) -> None:
    model = GatedModel()
    rig = rigs(model)
    rig.manager.start()
    rig.submit("r", one_sequence(FakeWork(num_steps=1)))
    assert model.in_step.wait(WAIT_S)
    assert (rig.manager.snapshot.num_running, rig.manager.snapshot.num_waiting) == (1, 0)
    model.gate.set()
    rig.events.last("r")
    assert rig.manager.drain(WAIT_S)


def test_the_figures_are_there_before_the_first_step(rigs: Callable[..., Rig]) -> None:
    class Telling(FakeStepModel):
        def stats(self) -> dict[str, float]:
            return {"failures_total": 0.0}

    metrics = rigs(Telling()).manager.snapshot.metrics
    assert (metrics["failures_total"], metrics["steps_total"]) == (0.0, 0)


def test_the_snapshot_shows_the_figures_of_the_last_step(rigs: Callable[..., Rig]) -> None:
    rig = rigs(FakeStepModel())
    rig.manager.start()
    rig.submit("r", many_sequences(FakeWork(num_steps=3), 4))
    rig.events.last("r")
    rig.manager.close()
    snapshot = rig.manager.snapshot
    assert (snapshot.num_running, snapshot.num_waiting, snapshot.queued_units) == (0, 0, 0)
    assert snapshot.metrics["steps_total"] == 3
    assert snapshot.metrics["step_units_total"] == 12
    assert snapshot.metrics["step_seconds_total"] == pytest.approx(3 * 0.014)
    assert snapshot.metrics["max_batch_sequences"] == 4
    assert snapshot.units_per_s == pytest.approx(12 / (3 * 0.014))
