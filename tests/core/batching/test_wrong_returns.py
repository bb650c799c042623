"""A model's method that returns what it may not, most often for want of a `return`: its request fails at once, by name."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from sixfold.core.batching.engine_adapter import EngineAdapter
from sixfold.core.batching.model import EngineModel, Finish, ModelInfo
from sixfold.core.batching.returned import check_loaded
from sixfold.core.errors import InvalidRequest, RequestError, StepFailed, UsageError
from sixfold.core.messages import Finished, Request, Usage
from tests.core.batching.loop_harness import LoopHarness
from tests.core.batching.manager_rig import WAIT_S, Rig
from tests.core.batching.test_forward_model import SquareModel, asked, results
from tests.fakes import FakeInput, FakeOutput, FakeStepModel, FakeWork, many_sequences, one_sequence

OUTPUT = FakeOutput(sequence_index=0, step_index=0)


class ForgetfulModel(FakeStepModel):
    """Returns something else from one method, as long as ``forgets``."""

    def __init__(self, method: str, value: object = None) -> None:
        super().__init__()
        self.forgets = True

        def forgetful(right: Callable[..., object]) -> Callable[..., object]:
            return lambda *args: (right(*args), value)[self.forgets]

        setattr(self, method, forgetful(getattr(self, method)))


@pytest.fixture
def rigs() -> Iterator[Callable[[FakeStepModel], Rig]]:
    made: list[Rig] = []

    def make(model: FakeStepModel) -> Rig:
        made.append(Rig(model))
        made[-1].manager.start()
        return made[-1]

    yield make
    for rig in made:
        rig.close()


WRONG: list[tuple[str, object, str]] = [
    ("finish", None, "ForgetfulModel.finish returned None, not a Finish: is a `return` missing?"),
    ("finish", {"text": "a"}, "ForgetfulModel.finish returned a dict, not a Finish."),
    ("finish", Finish(result=cast(Any, {}), usage=Usage()), "returned a Finish whose result is a dict, not a Struct"),
    ("finish", Finish(result=OUTPUT, usage=None), "returned a Finish whose usage is None, not a Usage"),  # type: ignore[arg-type]
    ("finish", Finish(result=OUTPUT, usage=Usage(counts={"n": 1.5})), "usage counts 'n' by a float, not an int"),  # type: ignore[dict-item]
    ("finish", Finish(result=OUTPUT, usage=Usage(), finish_reason=None), "finish_reason is None, not a str"),  # type: ignore[arg-type]
    ("prepare", None, "ForgetfulModel.prepare returned None, not a sequence: is a `return` missing?"),
    ("cost", None, "ForgetfulModel.cost returned None, not a Cost: is a `return` missing?"),
    ("cost", 3, "ForgetfulModel.cost returned an int, not a Cost."),
    ("step", None, "ForgetfulModel.step returned None, not a sequence of outcomes: is a `return` missing?"),
    ("step", [None], "ForgetfulModel.step returned None, not an Outcome: is a `return` missing?"),
    ("step", [OUTPUT], "ForgetfulModel.step returned a FakeOutput, not an Outcome."),
    ("collect", [], ""),  # nothing wrong: the others are not seen by accident
]


@pytest.mark.parametrize(("method", "value", "words"), WRONG)
def test_the_request_fails_at_once_and_the_next_one_is_served(
    method: str, value: object, words: str, rigs: Callable[[FakeStepModel], Rig], caplog: pytest.LogCaptureFixture
) -> None:
    model = ForgetfulModel(method, value)
    rig = rigs(model)
    rig.submit("r", one_sequence(FakeWork()))
    if words:
        error = rig.events.error("r")
        assert isinstance(error, StepFailed)
        assert error.status == 500
        assert words in error.message
        assert [words in line.getMessage() for line in caplog.records if line.levelno == logging.ERROR] == [True]
    model.forgets = False
    rig.submit("s", one_sequence(FakeWork(num_steps=3)))
    assert isinstance(rig.events.last("s"), Finished)
    assert rig.manager.drain(WAIT_S)
    rig.close()
    assert rig.manager.snapshot.num_running == 0
    assert model.num_unreleased == (method == "prepare")  # nobody was given these


@pytest.mark.parametrize("value", [None, 2.5, "many"])
def test_an_estimate_that_is_no_number_refuses_its_request(value: object, rigs: Callable[[FakeStepModel], Rig]) -> None:
    model = ForgetfulModel("estimate_units", value)
    rig = rigs(model)
    with pytest.raises(StepFailed, match=r"ForgetfulModel\.estimate_units returned .*, not an int"):
        rig.submit("r", one_sequence(FakeWork()))
    model.forgets = False
    rig.submit("r", one_sequence(FakeWork()))
    assert isinstance(rig.events.last("r"), Finished)


def test_an_estimate_that_raises_refuses_its_request(
    rigs: Callable[[FakeStepModel], Rig], caplog: pytest.LogCaptureFixture
) -> None:
    class Raising(FakeStepModel):
        def estimate_units(self, request: Request[FakeInput]) -> int:
            raise KeyError("no such word")

    with pytest.raises(StepFailed, match="The model failed on this request"):
        rigs(Raising()).submit("r", one_sequence(FakeWork()))
    assert "no such word" in caplog.text


def test_pieces_that_are_none_are_not_taken_for_an_empty_input(rigs: Callable[[FakeStepModel], Rig]) -> None:
    with pytest.raises(StepFailed, match=r"ForgetfulModel\.split returned None, not a sequence"):
        rigs(ForgetfulModel("split")).submit("r", one_sequence(FakeWork()))


def test_who_shares_a_step_with_a_missing_outcome_is_served() -> None:
    class Uneven(FakeStepModel):
        def step(self, batch: Any) -> Any:
            outcomes = list(super().step(batch))
            names = [granted.sequence.request_id for granted in batch]
            return [None if name == "bad" else outcome for name, outcome in zip(names, outcomes, strict=True)]

    harness = LoopHarness(Uneven())
    for name in ("good", "bad", "also good"):
        harness.submit(name, many_sequences(FakeWork(num_steps=2), 2))
    harness.run_until_idle()
    assert "Uneven.step returned None, not an Outcome" in harness.error_of("bad").message
    assert harness.finished("good") and harness.finished("also good")
    harness.assert_nothing_leaked()


def test_a_cost_that_is_none_behind_others_fails_its_request_and_starves_nobody() -> None:
    class Uneven(FakeStepModel):
        def cost(self, sequence: Any) -> Any:
            return None if sequence.request_id == "bad" else super().cost(sequence)

    harness = LoopHarness(Uneven())
    for name in ("first", "bad", "last"):
        harness.submit(name, one_sequence(FakeWork(num_steps=3)))
    harness.run_until_idle()
    assert "Uneven.cost returned None, not a Cost" in harness.error_of("bad").message
    assert harness.finished("first") and harness.finished("last")
    harness.assert_nothing_leaked()


def test_a_cost_that_goes_wrong_while_its_sequence_runs_fails_its_request() -> None:
    class Later(FakeStepModel):
        def cost(self, sequence: Any) -> Any:
            return 7 if sequence.num_emitted else super().cost(sequence)

    harness = LoopHarness(Later())
    harness.submit("r", one_sequence(FakeWork(num_steps=3)))
    harness.run_until_idle()
    assert "Later.cost returned an int, not a Cost." in harness.error_of("r").message
    harness.assert_nothing_leaked()


@pytest.mark.parametrize("num_emitted", [0, 1])
def test_a_cost_that_raises_fails_its_request_alone(num_emitted: int, caplog: pytest.LogCaptureFixture) -> None:
    class Raising(FakeStepModel):
        def cost(self, sequence: Any) -> Any:
            if sequence.request_id == "bad" and sequence.num_emitted == num_emitted:
                raise KeyError("no such table")
            return super().cost(sequence)

    harness = LoopHarness(Raising())
    for name in ("first", "bad", "last"):
        harness.submit(name, one_sequence(FakeWork(num_steps=3)))
    harness.run_until_idle()
    error = harness.error_of("bad")
    assert isinstance(error, StepFailed)
    assert "no such table" not in error.message and "no such table" in caplog.text
    assert harness.finished("first") and harness.finished("last")
    harness.assert_nothing_leaked()


def test_a_cost_may_refuse_its_sequence() -> None:
    class Refusing(FakeStepModel):
        def cost(self, sequence: Any) -> Any:
            raise InvalidRequest("Too long for the table.", param="input")

    harness = LoopHarness(Refusing())
    harness.submit("r", one_sequence(FakeWork()))
    harness.run_until_idle()
    assert isinstance(harness.error_of("r"), InvalidRequest)
    harness.assert_nothing_leaked()


@pytest.mark.parametrize(
    ("method", "value", "words"),
    [
        ("items", None, "SquareModel.items returned None, not a sequence of items"),
        ("units", None, "SquareModel.units returned None, not an int"),
        ("forward", None, "SquareModel.forward returned None, not a sequence of rows"),
        ("result", None, "SquareModel.result returned None, not a Finish"),
    ],
)
async def test_a_forward_models_own_methods_are_named(method: str, value: object, words: str) -> None:
    model = SquareModel()

    def forgetful(*_args: object) -> object:
        return value

    setattr(model, method, forgetful)
    (end,) = await results(model, asked("a", 3))
    error: RequestError = getattr(end, "error")  # noqa: B009  # an event of any kind
    assert words in error.message


@pytest.mark.parametrize(("name", "value"), [("info", None), ("info", {}), ("stats", None)])
def test_a_model_that_does_not_tell_of_itself_does_not_load(name: str, value: object) -> None:
    def silent(_self: FakeStepModel) -> object:
        return value

    made = type("Silent", (FakeStepModel,), {name: property(silent) if name == "info" else silent})
    with pytest.raises(UsageError, match=rf"Silent\.{name} returned .*, not a"):
        check_loaded(made())


class LostEngine(EngineModel[None, FakeInput, FakeOutput]):
    """Ends what it runs with nothing, and tells nothing."""

    @property
    def info(self) -> ModelInfo:
        return None  # type: ignore[return-value]

    def estimate_units(self, request: Request[FakeInput]) -> int:
        return None  # type: ignore[return-value]

    def prepare(self, request: Request[FakeInput]) -> None:
        return None

    async def run(self, request: Request[FakeInput], prepared: None, tell: Callable[[FakeOutput], None]) -> Any:
        return None


class UnlostEngine(LostEngine):
    """All but the end is right."""

    def estimate_units(self, request: Request[FakeInput]) -> int:
        return 1


@pytest.fixture
def adapters() -> Iterator[Callable[[LostEngine], EngineAdapter]]:
    made: list[EngineAdapter] = []

    def make(engine: LostEngine) -> EngineAdapter:
        made.append(EngineAdapter(engine))
        return made[-1]

    yield make
    for adapter in made:
        adapter.close()


def test_an_engine_is_named_not_its_adapter(adapters: Callable[[LostEngine], EngineAdapter]) -> None:
    adapter = adapters(LostEngine())
    with pytest.raises(UsageError, match=r"LostEngine\.info returned None, not a ModelInfo"):
        check_loaded(adapter)
    with pytest.raises(StepFailed, match=r"LostEngine\.estimate_units returned None, not an int"):
        adapter.estimate_units(Request(request_id="r", input=one_sequence(FakeWork()), arrived_s=0.0))


def test_an_engine_that_ends_a_request_without_a_finish_fails_it() -> None:
    model: Any = EngineAdapter(UnlostEngine())
    model.clock = time.monotonic
    rig = Rig(model)
    rig.manager.start()
    try:
        rig.submit("r", one_sequence(FakeWork()))
        error = rig.events.error("r")
        assert isinstance(error, StepFailed)
        assert "UnlostEngine.run returned None, not a Finish" in error.message
    finally:
        rig.close()
