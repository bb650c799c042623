"""Unmodified pipelines share forwards at their calls: they join and leave at any call, and end with their requests."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections import defaultdict
from collections.abc import Sequence

import msgspec
import pytest

from sixfold.core.batching.admission import Admission
from sixfold.core.batching.budget import Objective, StepBudget
from sixfold.core.batching.entry import RequestState
from sixfold.core.batching.model import Finish, ModelInfo, StepRange
from sixfold.core.batching.parked import Parked, PipelineSide
from sixfold.core.batching.pipeline_threads import PipelineThreads
from sixfold.core.batching.rendezvous import RendezvousModel
from sixfold.core.batching.scheduler import Scheduler
from sixfold.core.batching.step_loop import StepLoop
from sixfold.core.errors import InvalidRequest, RequestCancelled, StepFailed
from sixfold.core.messages import Cost, Event, Failed, Finished, Increment, Request, Usage
from tests.fakes import FakeClock


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """A request of the fake pipeline: add up ``num_steps`` doubled numbers."""

    start: int = 0
    num_steps: int = 3
    size: int = 1
    poisoned_at: int | None = None
    raises: str = ""
    stubborn: bool = False
    leaves: bool = False
    unwinds_slowly: bool = False


class Total(msgspec.Struct, frozen=True):
    """A preview, or the result."""

    value: int


class Call(msgspec.Struct, frozen=True):
    """One call of the module."""

    request_id: str
    value: int
    size: int
    poisoned: bool = False


class FakePipelineModel(RendezvousModel[Call, int, Picture, Total]):
    """Runs `Picture`; its module doubles a number. Records which requests shared each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards: list[list[str]] = []
        self.ends: list[threading.Event] = []  # of each pipeline that began
        self.threads: list[int] = []
        self.begun: list[int] = []
        self.doors: dict[str, threading.Event] = defaultdict(threading.Event)
        self.num_answers_missing = 0

    @property
    def info(self) -> ModelInfo:
        return ModelInfo()

    @property
    def step_range(self) -> StepRange:
        return StepRange(min_units=4, initial_units=4, max_units=4)

    def estimate_units(self, request: Request[Picture]) -> int:
        return request.input.num_steps

    def run_pipeline(self, request: Request[Picture], piece: object, side: PipelineSide[Call, int]) -> Finish[Total]:
        self.threads.append(threading.get_ident())
        end = threading.Event()
        self.ends.append(end)
        try:
            return self._run(request, side)
        finally:
            if request.input.unwinds_slowly:
                self.doors[request.request_id].wait(0.2)
            end.set()

    def _run(self, request: Request[Picture], side: PipelineSide[Call, int]) -> Finish[Total]:
        work = request.input
        if work.raises == "at once":
            raise InvalidRequest("no such size", param="size")
        total = work.start
        for index in range(work.num_steps):
            made = Call(request.request_id, total + index, work.size, index == work.poisoned_at)
            if work.stubborn:
                try:
                    total += side.call(made)
                except Exception:  # what a careless pipeline does
                    total += 1
            else:
                total += side.call(made)
            if work.raises == "later":
                raise ValueError("bug in the pipeline")
        if work.leaves:
            side.leave()
            self.doors[request.request_id].wait(20.0)  # a decode, as long as the test wants it
            side.emit(Total(-1))
        return Finish(result=Total(total), usage=Usage())

    def begin_thread(self) -> None:
        self.begun.append(threading.get_ident())

    def call_cost(self, call: Call) -> Cost:
        return Cost(units=1, min_units=1, batch_key=call.size)

    def forward(self, calls: Sequence[Call]) -> Sequence[int]:
        assert len({call.size for call in calls}) == 1
        if any(call.poisoned for call in calls):
            raise RuntimeError("poisoned")
        self.forwards.append([call.request_id for call in calls])
        return [2 * call.value for call in calls][: len(calls) - self.num_answers_missing]

    def preview(self, sequence: Parked[Call, int]) -> Total | None:
        return None if sequence.call is None else Total(sequence.call.value)


def alone(work: Picture) -> int:
    """The result of a pipeline that nobody shares with."""
    total = work.start
    for index in range(work.num_steps):
        total += 2 * (total + index)
    return total


class Rig:
    """A step loop over the model, driven by hand; is its outbox."""

    def __init__(self) -> None:
        self.model = FakePipelineModel()
        budget = StepBudget(self.model.step_range, Objective())
        scheduler = Scheduler(self.model, budget, max_running_sequences=8, patience_s=10.0)
        self.loop = StepLoop(self.model, scheduler, budget, self, FakeClock())
        self.admission = Admission(1000)
        self.events: dict[str, list[Event]] = {}
        self.woken = threading.Semaphore(0)
        self.model.attach(self.woken.release)

    def emit(self, events: tuple[Event, ...]) -> None:
        for event in events:
            self.events[event.request_id].append(event)

    def finish(self, states: Sequence[RequestState]) -> None:
        for state in states:
            end = self.model.finish(state.request, [entry.sequence for entry in state.entries])
            self.events[state.request.request_id].append(
                Finished(request_id=state.request.request_id, result=end.result)
            )

    def granted(self, grants: Sequence[tuple[RequestState, int]]) -> None: ...

    def ended(self, state: RequestState) -> None: ...

    def stepped(self, units: int, seconds: float) -> None: ...

    def submit(self, request_id: str, work: Picture) -> None:
        request = Request(request_id=request_id, input=work, arrived_s=0.0)
        state = RequestState(request, 1, len(self.events))
        self.events[request_id] = []
        self.loop.open(state, 1)
        self.loop.add_prepared(state, self.model.prepare(request, work))

    def run_until_idle(self) -> None:
        for _ in range(200):
            self.loop.run_once()
            if self.loop.idle:
                break
        assert self.loop.idle
        assert all(end.wait(20.0) for end in self.model.ends)

    def result(self, request_id: str) -> int:
        last = self.events[request_id][-1]
        assert isinstance(last, Finished)
        assert isinstance(last.result, Total)
        return last.result.value

    def error(self, request_id: str) -> Exception:
        last = self.events[request_id][-1]
        assert isinstance(last, Failed)
        return last.error


def test_pipelines_with_equal_keys_share_forwards_and_get_what_they_would_get_alone() -> None:
    rig = Rig()
    works = {f"r{index}": Picture(start=index, num_steps=2 + index) for index in range(4)}
    for request_id, work in works.items():
        rig.submit(request_id, work)
    rig.run_until_idle()
    assert [len(forward) for forward in rig.model.forwards] == [4, 4, 3, 2, 1]
    assert {request_id: rig.result(request_id) for request_id in works} == {
        request_id: alone(work) for request_id, work in works.items()
    }


def test_a_pipeline_joins_at_any_call_of_the_others() -> None:
    rig = Rig()
    rig.submit("first", Picture(num_steps=4))
    rig.loop.run_once()
    rig.loop.run_once()
    rig.submit("second", Picture(start=7, num_steps=3))
    rig.run_until_idle()
    assert rig.model.forwards == [["first"], ["first"], ["first", "second"], ["first", "second"], ["second"]]
    assert rig.result("second") == alone(Picture(start=7, num_steps=3))


def test_calls_that_disagree_never_share_a_forward() -> None:
    rig = Rig()
    for index in range(4):
        rig.submit(f"r{index}", Picture(size=1 + index % 2))
    rig.run_until_idle()  # the model asserts one size a forward
    assert all(len(forward) == 2 for forward in rig.model.forwards)


def test_a_forward_keeps_the_budget() -> None:
    rig = Rig()
    for index in range(6):
        rig.submit(f"r{index}", Picture())
    rig.run_until_idle()
    assert max(len(forward) for forward in rig.model.forwards) == 4
    assert all(rig.result(f"r{index}") == alone(Picture()) for index in range(6))


def test_a_poisoned_call_fails_its_own_pipeline_alone() -> None:
    rig = Rig()
    for index in range(4):
        rig.submit(f"r{index}", Picture(start=index, poisoned_at=1 if index == 2 else None))
    rig.run_until_idle()
    assert isinstance(rig.error("r2"), StepFailed)
    assert [rig.result(f"r{index}") for index in (0, 1, 3)] == [alone(Picture(start=index)) for index in (0, 1, 3)]


def test_a_pipeline_that_raises_fails_alone() -> None:
    rig = Rig()
    rig.submit("bad", Picture(raises="later"))
    rig.submit("good", Picture())
    rig.run_until_idle()
    assert isinstance(rig.error("bad"), StepFailed)
    assert rig.result("good") == alone(Picture())


def test_a_bad_input_is_refused_while_it_is_prepared() -> None:
    rig = Rig()
    with pytest.raises(InvalidRequest):
        rig.submit("bad", Picture(raises="at once"))


def test_a_pipeline_that_never_calls_still_finishes() -> None:
    rig = Rig()
    rig.submit("r", Picture(start=5, num_steps=0))
    rig.run_until_idle()
    assert rig.result("r") == 5


def test_the_thread_of_each_pipeline_is_made_ready_by_the_model() -> None:
    rig = Rig()
    for name in "ab":
        rig.submit(name, Picture())
    rig.run_until_idle()
    assert rig.model.begun == rig.model.threads
    assert len(set(rig.model.begun)) == 2


@pytest.mark.parametrize("stubborn", [False, True])
def test_cancelling_ends_the_pipeline(stubborn: bool) -> None:
    rig = Rig()
    rig.submit("r", Picture(num_steps=10**6, stubborn=stubborn))
    rig.loop.run_once()
    rig.loop.cancel("r")
    rig.run_until_idle()  # waits for its end
    assert isinstance(rig.error("r"), RequestCancelled)
    assert len(rig.model.forwards) == 1


def test_a_request_has_ended_when_its_pipeline_has() -> None:
    rig = Rig()
    rig.submit("r", Picture(unwinds_slowly=True))
    rig.loop.cancel("r")
    rig.loop.run_once()
    assert rig.loop.idle
    assert rig.model.ends[0].is_set()


def test_what_a_cancelled_pipeline_held_is_free_at_once() -> None:
    class Held:
        pass

    held: list[weakref.ref[Held]] = []

    def run(side: PipelineSide[int, int]) -> Finish[Total]:
        latents = Held()
        held.append(weakref.ref(latents))
        side.call(1)
        raise AssertionError(latents)

    gc.disable()
    try:
        parked: Parked[int, int] = Parked(run, PipelineThreads())
        assert held[0]() is not None
        parked.close()
        assert held[0]() is None
    finally:
        gc.enable()


def test_a_prepared_pipeline_that_is_dropped_ends_when_it_is_collected() -> None:
    model = FakePipelineModel()
    request = Request(request_id="r", input=Picture(), arrived_s=0.0)
    sequences = model.prepare(request, request.input)
    assert not model.ends[0].is_set()
    del sequences
    gc.collect()
    assert model.ends[0].wait(20.0)


def test_too_few_answers_fail_before_any_pipeline_went_on() -> None:
    rig = Rig()
    rig.model.num_answers_missing = 1
    rig.submit("a", Picture())
    rig.submit("b", Picture())
    rig.run_until_idle()
    assert isinstance(rig.error("a"), StepFailed)
    assert isinstance(rig.error("b"), StepFailed)


def test_previews_follow_the_steps() -> None:
    rig = Rig()
    rig.submit("r", Picture(num_steps=3))
    rig.run_until_idle()
    assert [type(event) for event in rig.events["r"]] == [Increment, Increment, Finished]


def test_a_pipeline_that_left_holds_up_nobody_and_ends_when_it_is_back() -> None:
    rig = Rig()
    rig.submit("decodes", Picture(num_steps=1, leaves=True))
    rig.submit("steps", Picture(num_steps=5))
    for _ in range(5):
        rig.loop.run_once()
    assert rig.result("steps") == alone(Picture(num_steps=5))  # while the other is still away
    assert not rig.loop.has_work
    assert rig.loop.num_running == 1
    rig.model.doors["decodes"].set()
    assert rig.woken.acquire(timeout=20.0)  # its increment, then its end
    assert rig.woken.acquire(timeout=20.0)
    rig.run_until_idle()
    assert rig.result("decodes") == alone(Picture(num_steps=1))
    assert rig.events["decodes"][-2] == Increment(request_id="decodes", output=Total(-1))


def test_a_pipeline_that_left_and_fails_ends_with_its_error() -> None:
    rig = Rig()
    rig.model.doors["r"].wait = lambda _timeout=None: 1 // 0  # type: ignore[assignment,method-assign,return-value]
    rig.submit("r", Picture(num_steps=1, leaves=True))
    rig.loop.run_once()
    assert rig.woken.acquire(timeout=20.0)
    rig.run_until_idle()
    assert isinstance(rig.error("r"), StepFailed)


def test_cancelling_a_pipeline_that_left_does_not_wait_for_it() -> None:
    rig = Rig()
    rig.submit("r", Picture(num_steps=1, leaves=True))
    rig.loop.run_once()
    rig.loop.cancel("r")
    rig.loop.run_once()
    assert isinstance(rig.error("r"), RequestCancelled)
    assert rig.loop.idle  # although its thread still works
    assert not rig.model.ends[0].is_set()
    rig.model.doors["r"].set()
    rig.run_until_idle()  # waits for its end
    assert [type(event) for event in rig.events["r"]][-1] is Failed


def test_keys_share_the_steps_evenly_and_none_starves() -> None:
    rig = Rig()
    for index in range(12):  # three shapes of very different demand
        rig.submit(f"r{index}", Picture(num_steps=40, size=(1, 1, 1, 1, 2, 2, 3)[index % 7]))
    for _ in range(60):
        rig.loop.run_once()
    sizes = {f"r{index}": (1, 1, 1, 1, 2, 2, 3)[index % 7] for index in range(12)}
    served: dict[str, int] = defaultdict(int)
    for forward in rig.model.forwards:
        for name in forward:
            served[name] += 1
    started = [name for name in sizes if served[name]]
    assert {sizes[name] for name in started} == {1, 2, 3}
    gaps = [[index for index, forward in enumerate(rig.model.forwards) if name in forward] for name in started]
    assert max(b - a for steps in gaps for a, b in itertools.pairwise(steps)) <= 6
    assert max(served[name] for name in started) <= 2 * min(served[name] for name in started)
