"""An engine with a loop of its own under the core's scheduler: bounded, aborted, isolated, collected between turns."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import msgspec
import pytest

from sixfold.core.batching.budget import Objective
from sixfold.core.batching.engine_adapter import EngineAdapter, EngineSequence
from sixfold.core.batching.manager import BatchManager, Limits
from sixfold.core.batching.model import DeviceLost, EngineModel, Finish, Granted, ModelInfo, Outcome
from sixfold.core.errors import InvalidRequest, RequestError, StepFailed
from sixfold.core.messages import Cost, Event, Failed, Finished, Increment, Request, Usage
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


class FakeEngine(EngineModel[str, Ask, Part]):
    """Yields as it is told by a gate (open at first); records what is inside and what was aborted."""

    def __init__(self) -> None:
        self.inside: set[str] = set()
        self.aborted: list[str] = []
        self.most_inside = 0
        self.closed_with_inside: int | None = None
        self.changed = threading.Condition()
        self.held: set[str] = set()
        self.left: set[str] = set()
        self.wakes: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Event]] = {}

    @property
    def info(self) -> ModelInfo:
        return ModelInfo()

    def estimate_units(self, request: Request[Ask]) -> int:
        return request.input.units

    def prepare(self, request: Request[Ask]) -> str:
        return f"prepared {request.request_id}"

    async def generate(self, request: Request[Ask], prepared: str) -> AsyncIterator[Part | Finish[Part]]:
        assert prepared == f"prepared {request.request_id}"
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
                self.left.add(request.request_id)
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
    """An adapter driven by hand."""

    def __init__(self, max_engine_units: int = 100) -> None:
        self.engine = FakeEngine()
        self.adapter = EngineAdapter(self.engine, max_engine_units=max_engine_units)
        self.woken = threading.Semaphore(0)
        self.adapter.attach(self.woken.release)

    def prepare(self, request_id: str, ask: Ask) -> EngineSequence:
        request = Request(request_id=request_id, input=ask, arrived_s=0.0)
        return self.adapter.prepare(request, ask)[0]

    def start(self, *sequences: EngineSequence) -> None:
        outcomes = self.adapter.step([Granted(sequence, 1) for sequence in sequences])
        assert not any(outcome.done or outcome.output for outcome in outcomes)

    def run(self, *sequences: EngineSequence) -> dict[EngineSequence, list[Outcome[Any]]]:
        """What each sequence did from its start to its end; a lost wake-up would hang it."""
        self.start(*sequences)
        found: dict[EngineSequence, list[Outcome[Any]]] = {sequence: [] for sequence in sequences}
        while not all(outcomes and outcomes[-1].done for outcomes in found.values()):
            assert self.woken.acquire(timeout=WAIT_S)
            for sequence, outcome in self.adapter.collect():
                found[sequence].append(outcome)
        return found


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.adapter.close()


def test_outputs_come_in_order_and_the_finish_is_the_result(rig: Rig) -> None:
    sequence = rig.prepare("r", Ask(count=5))
    outcomes = rig.run(sequence)[sequence]
    assert [outcome.output for outcome in outcomes] == [*(Part(index) for index in range(5)), None]
    assert outcomes[-1].error is None
    rig.adapter.release(sequence)
    assert rig.adapter.finish(sequence.request, [sequence]).result == Part(5)


def test_a_request_costs_its_work_once_and_nothing_while_it_is_inside(rig: Rig) -> None:
    sequence = rig.prepare("r", Ask(units=7))
    assert rig.adapter.cost(sequence) == Cost(units=7, min_units=7)
    rig.run(sequence)
    assert rig.adapter.cost(sequence) is None


@pytest.mark.parametrize(
    ("ending", "expected"),
    [("refuse", InvalidRequest), ("break", StepFailed), ("stop", StepFailed), ("cancel", StepFailed)],
)
def test_a_failing_request_fails_alone(rig: Rig, ending: str, expected: type[RequestError]) -> None:
    bad, good = rig.prepare("bad", Ask(ending=ending)), rig.prepare("good", Ask(count=3))
    outcomes = rig.run(bad, good)
    assert isinstance(outcomes[bad][-1].error, expected)
    assert [outcome.error for outcome in outcomes[good]] == [None] * 4
    assert good.finish is not None


def test_a_lost_engine_is_a_lost_device(rig: Rig) -> None:
    with pytest.raises(DeviceLost):
        rig.run(rig.prepare("r", Ask(count=0, ending="lose")))


def test_many_outputs_between_two_turns_wake_the_device_thread_once(rig: Rig) -> None:
    sequence = rig.prepare("r", Ask(count=50))
    rig.start(sequence)
    rig.engine.wait_for(lambda: "r" in rig.engine.left)
    assert rig.woken.acquire(timeout=WAIT_S)
    assert not rig.woken.acquire(blocking=False)
    assert len(rig.adapter.collect()) >= 50


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


def test_no_more_requests_are_inside_than_the_engine_allows(rig: Rig) -> None:
    rig.adapter.max_running_requests = 2
    sequences = [rig.prepare(f"r{index}", Ask()) for index in range(3)]
    assert [rig.adapter.reserve(sequence, 1) for sequence in sequences] == [1, 1, 0]
    rig.adapter.release(sequences[1])
    assert rig.adapter.reserve(sequences[2], 1) == 1


def test_releasing_a_running_request_aborts_it_in_the_engine(rig: Rig) -> None:
    rig.engine.held.add("r")
    sequence = rig.prepare("r", Ask())
    rig.start(sequence)
    rig.engine.wait_for(lambda: "r" in rig.engine.wakes)
    rig.adapter.release(sequence)
    rig.engine.wait_for(lambda: not rig.engine.inside)
    assert rig.engine.aborted == ["r"]


def test_releasing_a_request_that_never_started_touches_nothing(rig: Rig) -> None:
    rig.adapter.release(rig.prepare("r", Ask()))
    assert not rig.engine.aborted


def test_close_aborts_what_runs_before_the_engine_is_closed() -> None:
    rig = Rig()
    rig.engine.held.add("r")
    sequence = rig.prepare("r", Ask())
    rig.start(sequence)
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
