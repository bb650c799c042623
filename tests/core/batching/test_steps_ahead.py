"""Steps that begin before the one before is settled: what is handed out when, and what becomes of a step that fails."""

from __future__ import annotations

import pytest

from sixfold.core.batching.model import StepRange
from sixfold.core.errors import NotReady, RequestCancelled, StepFailed
from tests.core.batching.loop_harness import LoopHarness
from tests.fakes import FakeAheadModel, FakeWork, one_sequence


@pytest.fixture
def model() -> FakeAheadModel:
    return FakeAheadModel()


@pytest.fixture
def harness(model: FakeAheadModel) -> LoopHarness:
    return LoopHarness(model)


def test_a_step_is_handed_out_after_the_next_one_has_begun(harness: LoopHarness, model: FakeAheadModel) -> None:
    harness.submit("a", one_sequence(FakeWork(num_steps=3)))
    harness.run()
    assert harness.events["a"] == []
    assert len(model.flying) == 1
    harness.run()
    assert len(harness.events["a"]) == 1
    assert len(model.flying) == 1
    assert model.num_begun_on_top == 1


def test_a_last_step_that_was_foreseen_is_not_followed(harness: LoopHarness, model: FakeAheadModel) -> None:
    harness.submit("a", one_sequence(FakeWork(num_steps=3)))
    harness.run_until_idle()
    assert harness.finished("a")
    assert (len(model.batches), model.num_surplus) == (3, 0)
    harness.assert_nothing_leaked()


def test_what_a_sequence_computes_after_its_unforeseen_end_is_dropped(
    harness: LoopHarness, model: FakeAheadModel
) -> None:
    harness.submit("a", one_sequence(FakeWork(num_steps=3, ends_unforeseen=True)))
    harness.run_until_idle()
    assert len(harness.events["a"]) == 4  # three increments and the result
    assert model.num_surplus == 1
    harness.assert_nothing_leaked()


def test_the_loop_is_not_idle_while_a_step_is_in_flight(harness: LoopHarness) -> None:
    harness.submit("a", one_sequence(FakeWork(num_steps=5)))
    harness.run(2)
    harness.cancel("a")
    assert harness.loop.run_once()
    assert isinstance(harness.error_of("a"), RequestCancelled)
    assert not harness.loop.run_once()
    assert harness.loop.idle
    harness.assert_nothing_leaked()


def test_one_that_must_look_back_waits_while_others_go_ahead(harness: LoopHarness, model: FakeAheadModel) -> None:
    harness.submit("ahead", one_sequence(FakeWork(num_steps=8)))
    harness.submit("back", one_sequence(FakeWork(num_steps=4, looks_back=True)))
    harness.run_until_idle()
    assert [len(batch) for batch in model.batches] == [2, 1] * 4
    assert harness.finished("ahead") and harness.finished("back")


def test_a_step_that_may_not_be_followed_is_settled_in_its_turn() -> None:
    model = FakeAheadModel(may_be_followed=False)
    harness = LoopHarness(model)
    harness.submit("a", one_sequence(FakeWork(num_steps=2)))
    harness.run()
    assert len(harness.events["a"]) == 1
    assert model.num_begun_on_top == 0


@pytest.mark.parametrize("is_second", [False, True])
def test_only_the_culprit_of_a_failed_step_fails_and_nothing_comes_twice(is_second: bool) -> None:
    model = FakeAheadModel()
    harness = LoopHarness(model)
    good = FakeWork(num_steps=6)
    bad = FakeWork(num_steps=6, poisoned_at=2)  # in `finish`; the second of a piece in `begin`
    harness.submit("good", one_sequence(good))
    first, second = (good, bad) if is_second else (bad, good)
    harness.submit("pair", one_sequence(first))
    harness.submit("other", one_sequence(second))
    harness.run_until_idle()
    culprit = "other" if is_second else "pair"
    assert isinstance(harness.error_of(culprit), StepFailed)
    for name in {"good", "pair", "other"} - {culprit}:
        assert harness.finished(name)
        assert len(harness.events[name]) == 7
    harness.assert_nothing_leaked()


def test_a_step_that_does_not_begin_is_run_after_the_one_before() -> None:
    model = FakeAheadModel()
    harness = LoopHarness(model)
    harness.submit("good", one_sequence(FakeWork(num_steps=6)))
    sequences = (FakeWork(num_steps=6), FakeWork(num_steps=6, poisoned_at=2))
    harness.submit("pair", one_sequence(sequences[0]))
    model._num_prepared["bad"] = 1  # pyright: ignore[reportPrivateUsage]  # an odd index: `begin` raises
    harness.submit("bad", one_sequence(sequences[1]))
    harness.run_until_idle()
    assert isinstance(harness.error_of("bad"), StepFailed)
    assert len(harness.events["bad"]) == 3
    assert len(harness.events["good"]) == len(harness.events["pair"]) == 7
    harness.assert_nothing_leaked()


def test_a_sequence_in_flight_that_fills_the_memory_is_not_refused() -> None:
    model = FakeAheadModel(
        memory_units=4, step_range=StepRange(min_units=1, initial_units=16, max_units=16)
    )  # four steps fit; a fifth would not, if there were one
    harness = LoopHarness(model)
    harness.submit("a", one_sequence(FakeWork(num_steps=4, ends_unforeseen=True)))
    harness.run_until_idle()
    assert harness.finished("a")


def test_preempted_work_that_was_in_flight_is_done_again() -> None:
    model = FakeAheadModel(memory_units=12)
    harness = LoopHarness(model)
    for name in ("a", "b", "c"):
        harness.submit(name, one_sequence(FakeWork(divisible_units=3, num_steps=6)))
    harness.run_until_idle()
    assert harness.scheduler.num_preemptions > 0
    assert model.num_begun_on_top > 0
    assert all(len(harness.events[name]) == 7 for name in ("a", "b", "c"))
    harness.assert_nothing_leaked()


def test_closing_abandons_what_is_in_flight(harness: LoopHarness, model: FakeAheadModel) -> None:
    harness.submit("a", one_sequence(FakeWork(num_steps=5)))
    harness.run(2)
    harness.loop.fail_all(NotReady("closing"))
    assert model.flying == []
    assert isinstance(harness.error_of("a"), NotReady)
    harness.assert_nothing_leaked()


def test_the_budget_learns_the_time_between_two_ends_of_steps(harness: LoopHarness, model: FakeAheadModel) -> None:
    harness.submit("a", one_sequence(FakeWork(num_steps=4)))
    harness.run_until_idle()
    rate = harness.admission.units_per_s
    assert rate == pytest.approx(1 / (model.fixed_s + model.unit_s))
