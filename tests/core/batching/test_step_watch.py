"""What is told of the running batch while somebody watches, and that nothing is kept while nobody does."""

from __future__ import annotations

from sixfold.core.batching.model import StepRange
from sixfold.core.batching.step_watch import Joined, Left, StepNews, Stepped, StepWatch
from tests.core.batching.loop_harness import LoopHarness
from tests.fakes import FakeStepModel, FakeWork, many_sequences, one_sequence


def watched(model: FakeStepModel, watch: StepWatch | None = None) -> LoopHarness:
    harness = LoopHarness(model)
    harness.loop.watch = watch or StepWatch()
    return harness


def news_of(harness: LoopHarness) -> list[StepNews]:
    assert harness.loop.watch is not None
    return harness.loop.watch.take()[0]


def test_a_step_tells_who_joined_what_each_was_granted_and_what_it_cost() -> None:
    harness = watched(FakeStepModel(step_range=StepRange(min_units=1, initial_units=16, max_units=16)))
    harness.submit("long", one_sequence(FakeWork(divisible_units=5, num_steps=2)), tenant="ward")
    harness.submit("short", one_sequence(FakeWork(num_steps=1)))
    harness.run()
    long, short, step, _left = news_of(harness)
    assert isinstance(long, Joined)
    assert isinstance(short, Joined)
    assert isinstance(step, Stepped)
    assert (long.request_id, long.tenant, long.units, long.waited_s) == ("long", "ward", 7, 0.0)
    assert step.rows == ((long.sequence, 5), (short.sequence, 1))
    assert (step.number, step.units, step.budget_units, step.num_waiting) == (1, 6, 16, 0)
    assert step.at_s == harness.clock()
    assert round(step.seconds, 6) == 0.016


def test_who_is_done_leaves_after_its_last_step() -> None:
    harness = watched(FakeStepModel())
    harness.submit("one", one_sequence(FakeWork(num_steps=2)))
    harness.run_until_idle()
    joined, *steps, left = news_of(harness)
    assert isinstance(joined, Joined)
    assert [step.number for step in steps if isinstance(step, Stepped)] == [1, 2]
    assert left == Left(sequence=joined.sequence, step=2, reason="done")


def test_the_sequences_of_a_request_have_its_number_and_numbers_of_their_own() -> None:
    harness = watched(FakeStepModel())
    harness.submit("many", many_sequences(FakeWork(num_steps=1), 3))
    harness.run()
    joined = [event for event in news_of(harness) if isinstance(event, Joined)]
    assert len({event.sequence for event in joined}) == 3
    assert len({event.request for event in joined}) == 1


def test_cancelled_and_failed_sequences_leave_with_the_code_of_the_error() -> None:
    harness = watched(FakeStepModel())
    harness.submit("gone", one_sequence(FakeWork(num_steps=9)))
    harness.submit("bad", one_sequence(FakeWork(num_steps=9, error_at=1)))
    harness.run(2)
    harness.cancel("gone")
    harness.run()
    reasons = [event.reason for event in news_of(harness) if isinstance(event, Left)]
    assert sorted(reasons) == ["request_cancelled", "server_error"]


def test_a_sequence_that_lost_its_memory_leaves_as_preempted_and_joins_anew() -> None:
    harness = watched(FakeStepModel(memory_units=12))
    harness.submit("a", one_sequence(FakeWork(num_steps=8)))
    harness.submit("b", one_sequence(FakeWork(num_steps=8)))
    harness.run_until_idle()
    news = news_of(harness)
    joined = [event for event in news if isinstance(event, Joined)]
    left = [event for event in news if isinstance(event, Left)]
    assert [event.request_id for event in joined] == ["a", "b", "b"]
    assert [event.reason for event in left] == ["preempted", "done", "done"]
    assert left[0].sequence == joined[1].sequence


def test_whoever_comes_later_is_told_of_what_runs_under_the_same_numbers() -> None:
    harness = watched(FakeStepModel())
    harness.submit("one", one_sequence(FakeWork(num_steps=9)))
    harness.run()
    first = [event for event in news_of(harness) if isinstance(event, Joined)]
    assert harness.loop.watch is not None
    harness.loop.watch.retell()
    assert news_of(harness) == first


def test_news_that_nobody_takes_are_bounded_and_their_loss_is_counted() -> None:
    harness = watched(FakeStepModel(), StepWatch(max_events=4))
    harness.submit("one", one_sequence(FakeWork(num_steps=10)))
    harness.run_until_idle()
    assert harness.loop.watch is not None
    news, num_dropped = harness.loop.watch.take()
    assert len(news) == 4
    assert num_dropped == 8  # of one that joins, ten steps and one that leaves
    assert isinstance(news[-1], Left)


def test_a_model_with_a_budget_of_its_own_has_none_here() -> None:
    top = 1 << 40
    harness = watched(FakeStepModel(step_range=StepRange(min_units=top, initial_units=top, max_units=top)))
    harness.submit("one", one_sequence(FakeWork(num_steps=1)))
    harness.run()
    assert [event.budget_units for event in news_of(harness) if isinstance(event, Stepped)] == [None]
