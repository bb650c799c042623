"""An engine with a loop of its own under the core's scheduler: bounded, aborted, isolated, interrupted."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import msgspec
import pytest

from sixfold.core.batching import engine_adapter
from sixfold.core.batching.budget import Objective
from sixfold.core.batching.engine_adapter import EngineAdapter, EngineSequence
from sixfold.core.batching.manager import BatchManager, Limits
from sixfold.core.batching.model import DeviceLost, EngineModel, Finish, Granted, ModelInfo
from sixfold.core.errors import InvalidRequest, RequestError, StepFailed
from sixfold.core.messages import Event, Failed, Finished, Increment, Request, Usage
from sixfold.core.tokenization.pool import ThreadPiecePool

WAIT_S = 20.0  # only ever reached by a failing test


class Ask(msgspec.Struct, frozen=True):
    """What a request does in the fake engine."""

    units: int = 1
    count: int = 2
    ending: str = "finish"


class Part(msgspec.Struct, frozen=True):
    """The n-th output."""

    index: int


class FakeEngine(EngineModel[Ask, Part]):
    """Yields as it is told by a gate (open at first); records what is inside and what was aborted."""

    def __init__(self) -> None:
        self.inside: set[str] = set()
        self.aborted: list[str] = []
        self.most_inside = 0
        self.closed_with_inside: int | None = None
        self.changed = threading.Condition()
        self.held: set[str] = set()
        self.wakes: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Event]] = {}

    @property
    def info(self) -> ModelInfo:
        return ModelInfo()

    def estimate_units(self, request: Request[Ask]) -> int:
        return request.input.units

    async def generate(self, request: Request[Ask]) -> AsyncIterator[Part | Finish[Part]]:
        self._enter(request.request_id)
        try:
            if request.request_id in self.held:
                wake = asyncio.Event()
                self.wakes[request.request_id] = (asyncio.get_running_loop(), wake)
                with self.changed:
                    self.changed.notify_all()
                await wake.wait()
            for index in range(request.input.count):
                yield Part(index)
                await asyncio.sleep(0)
            self._end(request.input.ending)
            if request.input.ending == "finish":
                yield Finish(result=Part(request.input.count), usage=Usage())
        except asyncio.CancelledError:
            self.aborted.append(request.request_id)
            raise
        finally:
            with self.changed:
                self.inside.discard(request.request_id)
                self.changed.notify_all()

    def _enter(self, request_id: str) -> None:
        with self.changed:
            self.inside.add(request_id)
            self.most_inside = max(self.most_inside, len(self.inside))
            self.changed.notify_all()

    @staticmethod
    def _end(ending: str) -> None:
        if ending == "refuse":
            raise InvalidRequest("too long")
        if ending == "break":
            raise ValueError("bug")
        if ending == "lose":
            raise DeviceLost("the engine died")
        if ending == "cancel":
            raise asyncio.CancelledError

    def let_go(self, request_id: str) -> None:
        self.wait_for(lambda: request_id in self.wakes)
        loop, wake = self.wakes[request_id]
        loop.call_soon_threadsafe(wake.set)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, WAIT_S)

    def close(self) -> None:
        self.closed_with_inside = len(self.inside)


class Rig:
    """An adapter stepped by hand."""

    def __init__(self, max_engine_units: int = 100) -> None:
        self.engine = FakeEngine()
        self.adapter = EngineAdapter(self.engine, max_engine_units=max_engine_units)

    def prepare(self, request_id: str, ask: Ask) -> EngineSequence:
        request = Request(request_id=request_id, input=ask, arrived_s=0.0)
        return self.adapter.prepare(request, ask)[0]

    def run(self, sequence: EngineSequence) -> tuple[list[Any], RequestError | None]:
        """Steps one sequence to its end."""
        outputs: list[Any] = []
        while True:
            outcome = self.adapter.step([Granted(sequence, 1)])[0]
            if outcome.output is not None:
                outputs.append(outcome.output)
            if outcome.done:
                return outputs, outcome.error


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.adapter.close()


def test_outputs_come_in_order_and_the_finish_is_the_result(rig: Rig) -> None:
    sequence = rig.prepare("r", Ask(count=5))
    outputs, error = rig.run(sequence)
    assert (outputs, error) == ([Part(index) for index in range(5)], None)
    rig.adapter.release(sequence)
    assert rig.adapter.finish(sequence.request, [sequence]).result == Part(5)


@pytest.mark.parametrize(
    ("ending", "expected"),
    [("refuse", InvalidRequest), ("break", StepFailed), ("stop", StepFailed), ("cancel", StepFailed)],
)
def test_a_failing_request_fails_alone(rig: Rig, ending: str, expected: type[RequestError]) -> None:
    bad, good = rig.prepare("bad", Ask(ending=ending)), rig.prepare("good", Ask(count=3))
    errors: list[RequestError] = []
    live = [bad, good]
    while live:
        outcomes = rig.adapter.step([Granted(sequence, 1) for sequence in live])
        errors.extend(outcome.error for outcome in outcomes if outcome.error is not None)
        live = [sequence for sequence, outcome in zip(live, outcomes, strict=True) if not outcome.done]
    assert [type(error) for error in errors] == [expected]
    assert good.finish is not None


def test_a_lost_engine_is_a_lost_device(rig: Rig) -> None:
    sequence = rig.prepare("r", Ask(count=0, ending="lose"))
    with pytest.raises(DeviceLost):
        rig.run(sequence)


def test_what_the_engine_holds_is_bounded_already_before_the_step(rig: Rig) -> None:
    sequences = [rig.prepare(f"r{index}", Ask(units=40)) for index in range(4)]
    assert [rig.adapter.reserve(sequence, 40) for sequence in sequences] == [40, 40, 0, 0]
    assert rig.adapter.reserve(sequences[0], 40) == 40  # safe to repeat
    rig.adapter.release(sequences[0])
    assert rig.adapter.reserve(sequences[2], 40) == 40


def test_one_request_over_the_bound_still_fits_alone(rig: Rig) -> None:
    large, small = rig.prepare("large", Ask(units=1000)), rig.prepare("small", Ask())
    assert rig.adapter.reserve(large, 1000) == 1000
    assert rig.adapter.reserve(small, 1) == 0
    rig.adapter.release(large)
    assert rig.adapter.reserve(small, 1) == 1


def test_releasing_a_running_request_aborts_it_in_the_engine(rig: Rig) -> None:
    rig.engine.held.add("r")
    sequence = rig.prepare("r", Ask())
    rig.adapter.interrupt()
    rig.adapter.step([Granted(sequence, 1)])
    rig.engine.wait_for(lambda: "r" in rig.engine.wakes)
    rig.adapter.release(sequence)
    rig.engine.wait_for(lambda: not rig.engine.inside)
    assert rig.engine.aborted == ["r"]


def test_releasing_a_request_that_never_started_touches_nothing(rig: Rig) -> None:
    rig.adapter.release(rig.prepare("r", Ask()))
    assert not rig.engine.aborted


def test_an_interrupt_before_the_wait_is_not_lost(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_adapter, "_WAIT_S", WAIT_S)
    rig.engine.held.add("r")
    sequence = rig.prepare("r", Ask())
    returned = threading.Event()

    def step() -> None:
        rig.adapter.step([Granted(sequence, 1)])
        returned.set()

    rig.adapter.interrupt()  # something came in after the loop had looked and before the step
    thread = threading.Thread(target=step)
    thread.start()
    came_back = returned.wait(WAIT_S / 4)
    rig.adapter.interrupt()
    thread.join(WAIT_S)
    assert came_back


def test_an_interrupt_ends_a_wait(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_adapter, "_WAIT_S", WAIT_S)
    rig.engine.held.add("r")
    sequence = rig.prepare("r", Ask())
    thread = threading.Thread(target=lambda: rig.adapter.step([Granted(sequence, 1)]))
    thread.start()
    rig.engine.wait_for(lambda: "r" in rig.engine.wakes)
    assert thread.is_alive()
    rig.adapter.interrupt()
    thread.join(WAIT_S / 4)
    assert not thread.is_alive()


def test_an_output_ends_a_wait(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_adapter, "_WAIT_S", WAIT_S)
    rig.engine.held.add("r")
    sequence = rig.prepare("r", Ask(count=1))
    outcomes: list[Any] = []
    thread = threading.Thread(target=lambda: outcomes.extend(rig.adapter.step([Granted(sequence, 1)])))
    thread.start()
    rig.engine.let_go("r")
    thread.join(WAIT_S / 4)
    assert [outcome.output for outcome in outcomes] == [Part(0)]


def test_close_aborts_what_runs_before_the_engine_is_closed() -> None:
    rig = Rig()
    rig.engine.held.add("r")
    sequence = rig.prepare("r", Ask())
    rig.adapter.interrupt()
    rig.adapter.step([Granted(sequence, 1)])
    rig.engine.wait_for(lambda: "r" in rig.engine.wakes)
    rig.adapter.release(sequence)
    rig.adapter.close()
    assert rig.engine.closed_with_inside == 0
    assert rig.engine.aborted == ["r"]


def test_under_a_manager_the_engine_is_bounded_and_every_request_is_answered_once() -> None:
    rig = Rig(max_engine_units=10)
    events: dict[str, list[Event]] = defaultdict(list)
    ended = threading.Semaphore(0)

    def emit(made: tuple[Event, ...]) -> None:
        for event in made:
            events[event.request_id].append(event)
            if isinstance(event, Finished | Failed):
                ended.release()

    pool: ThreadPiecePool[tuple[Request[Any], object], Sequence[Any]] = ThreadPiecePool(
        lambda work: rig.adapter.prepare(*work), num_workers=1, max_pending_pieces=100
    )
    manager = BatchManager(
        rig.adapter, pool=pool, limits=Limits(), objective=Objective(), emit=emit, clock=time.monotonic
    )
    manager.start()
    rig.engine.held.add("cancelled")
    manager.submit(Request(request_id="cancelled", input=Ask(units=5), arrived_s=time.monotonic()))
    rig.engine.wait_for(lambda: "cancelled" in rig.engine.wakes)
    for index in range(20):
        manager.submit(Request(request_id=f"r{index}", input=Ask(units=5, count=3), arrived_s=time.monotonic()))
    for _ in range(20):
        assert ended.acquire(timeout=WAIT_S)
    manager.cancel("cancelled")
    assert ended.acquire(timeout=WAIT_S)
    manager.close()
    pool.close()
    assert rig.engine.most_inside <= 2
    assert rig.engine.aborted == ["cancelled"]
    assert all([type(event) for event in events[f"r{index}"]] == [Increment] * 3 + [Finished] for index in range(20))
