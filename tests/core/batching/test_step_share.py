"""How many whole jobs share a step is learned from the times of steps, and sharing makes nobody late.

The simulations run the real loop on a fake clock against a lock: one job after another, in order of arrival.
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.core.batching.model import Granted, Outcome, StepRange
from sixfold.core.batching.step_share import MeasuredStep, StepCurve, StepShare
from sixfold.core.messages import Priority
from tests.core.batching.loop_harness import LoopHarness
from tests.fakes import FakeOutput, FakeSequence, FakeStepModel, FakeWork, one_sequence

JOBS = StepRange(min_units=1, initial_units=64, max_units=64, whole_jobs=True)
STEPS = (4, 12, 20, 50)


class TimedModel(FakeStepModel):
    """A step of ``k`` jobs takes ``seconds(k)``."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        super().__init__(fixed_s=0.0, unit_s=0.0, step_range=JOBS)
        self._seconds = seconds

    def step(self, batch: Sequence[Granted[FakeSequence]]) -> Sequence[Outcome[FakeOutput]]:
        self.clock.advance(self._seconds(len(batch)))
        return super().step(batch)


def poisson(count: int, per_s: float, seed: int) -> list[tuple[float, int]]:
    """Arrivals with their numbers of steps."""
    source = random.Random(seed)
    times = itertools.accumulate(source.expovariate(per_s) for _ in range(count))
    return [(time_s, source.choice(STEPS)) for time_s in times]


def locked(jobs: Sequence[tuple[float, int]], step_s: float) -> list[float]:
    """Latencies of one job after another."""
    free_s = 0.0
    found: list[float] = []
    for arrived_s, num_steps in jobs:
        free_s = max(free_s, arrived_s) + num_steps * step_s
        found.append(free_s - arrived_s)
    return found


def served(jobs: Sequence[tuple[float, int]], seconds: Callable[[int], float]) -> list[float]:
    """Latencies of the same jobs in the loop."""
    harness = LoopHarness(TimedModel(seconds), max_running_sequences=64)
    began_s = harness.clock()
    waiting = list(enumerate(jobs))
    while waiting or not harness.loop.idle:
        while waiting and waiting[0][1][0] <= harness.clock() - began_s:
            index, (_, num_steps) = waiting.pop(0)
            harness.submit(f"r{index}", one_sequence(FakeWork(num_steps=num_steps)))
        if not harness.loop.run_once() and waiting:
            harness.clock.advance(max(1e-9, waiting[0][1][0] - (harness.clock() - began_s)))
    harness.assert_nothing_leaked()
    return [harness.ended_s[f"r{index}"] - began_s - arrived_s for index, (arrived_s, _) in enumerate(jobs)]


def p95(latencies: Sequence[float]) -> float:
    return sorted(latencies)[int(0.95 * len(latencies))]


def compare(seconds: Callable[[int], float], load: float) -> tuple[float, float]:
    """(mean, p95) of the lock over the loop's, over five seeds."""
    alone: list[tuple[float, float]] = []
    shared: list[tuple[float, float]] = []
    for seed in range(5):
        jobs = poisson(40, load / (statistics.fmean(STEPS) * seconds(1)), seed)
        one, other = locked(jobs, seconds(1)), served(jobs, seconds)
        alone.append((statistics.fmean(one), p95(one)))
        shared.append((statistics.fmean(other), p95(other)))
    means = [statistics.fmean(a[i] for a in alone) / statistics.fmean(b[i] for b in shared) for i in (0, 1)]
    return means[0], means[1]


@pytest.mark.parametrize("load", [0.5, 0.8, 1.1, 2.0])
@pytest.mark.parametrize("row_s", [0.7, 0.8, 0.9, 1.0])
def test_where_rows_gain_little_or_nothing_no_percentile_is_worse_than_one_after_another(
    row_s: float, load: float
) -> None:
    mean, tail = compare(lambda k: 0.1 * (1.0 - row_s + row_s * k), load)
    assert mean >= 0.95  # the rest is what trying company costs
    assert tail >= 0.94


@pytest.mark.parametrize(("load", "least"), [(0.8, 2.0), (1.1, 3.0), (2.0, 5.0)])
def test_where_rows_are_free_up_to_four_all_wait_less(load: float, least: float) -> None:
    mean, tail = compare(lambda k: max(0.1, 0.027 * k), load)  # the form of 1024 pixels on a large GPU
    assert mean >= least
    assert tail >= least


def test_where_a_row_costs_half_a_step_company_pays() -> None:
    mean, tail = compare(lambda k: 0.05 + 0.05 * k, 1.1)
    assert mean >= 2.0
    assert tail >= 1.6


def share_of(seconds: Callable[[int], float], counts: Sequence[int] = (1, 2, 4, 8, 16)) -> StepShare:
    share = StepShare()
    for count in counts:
        for _ in range(3):
            share.observe("a", count, seconds(count))
    return share


def test_company_grows_with_the_queue_as_the_square_root_of_fixed_over_marginal_cost() -> None:
    share = share_of(lambda k: 0.4 + 0.1 * k)
    chosen = [share.choose("a", [1] * num) for num in (1, 4, 16)]
    assert chosen == [1, 4, 14]  # sqrt(3 n 4), at most n


def test_with_times_known_from_the_warm_up_the_first_requests_need_no_trial() -> None:
    harness = LoopHarness(TimedModel(lambda k: float(k)))
    harness.budget.learn(
        MeasuredStep(batch_key=None, units=count, seconds=float(count)) for count in (1, 2, 4) for _ in range(2)
    )
    for index in range(5):
        harness.submit(f"r{index}", one_sequence(FakeWork(num_steps=3)))
    harness.run_until_idle()
    assert [len(batch) for batch in harness.model.batches] == [1] * 15


def test_one_outlier_changes_nothing() -> None:
    share = share_of(lambda _k: 0.1)
    share.observe("a", 16, 30.0)  # a compilation
    assert share.choose("a", [1] * 16) == 16


def test_a_device_that_changes_is_found_out() -> None:
    share = share_of(lambda k: 0.1 * k)
    chosen = 1
    for _ in range(256 * 20):
        chosen = share.choose("a", [1] * 8)
        share.observe("a", chosen, 0.1)  # rows have become free
    assert chosen >= 4


def test_a_new_key_is_judged_by_the_others_scaled_by_its_first_times() -> None:
    share = share_of(lambda k: 0.1 * k)
    share.observe("b", 2, 0.4)
    share.observe("b", 2, 0.4)
    assert share.choose("b", [2] * 4) == 1
    assert share.choose("c", [2] * 4) == 1


@settings(max_examples=100, deadline=None)
@given(
    times=st.lists(st.tuples(st.integers(1, 100_000), st.floats(0.0, 100.0)), max_size=60),
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=64),
)
def test_whatever_was_measured_at_least_one_and_at_most_all_share(
    times: list[tuple[int, float]], sizes: list[int]
) -> None:
    share, curve = StepShare(), StepCurve()
    for units, seconds in times:
        share.observe(units % 3, units, seconds)
        curve.observe(units, seconds)
    assert all(1 <= share.choose(key, sizes) <= len(sizes) for key in range(4))
    known = [seconds for _, seconds in curve.points]
    assert known == sorted(known)


# What the order promises.


def jobs_harness(patience_s: float = 10.0) -> LoopHarness:
    return LoopHarness(TimedModel(lambda k: float(k)), patience_s=patience_s)


def test_jobs_of_another_shape_wait_for_those_before_them_and_no_longer() -> None:
    harness = jobs_harness()
    for index in range(12):
        harness.submit(f"r{index}", one_sequence(FakeWork(num_steps=5, key="ab"[index % 2])))
    harness.run_until_idle()
    ends = sorted(harness.ended_s, key=lambda name: harness.ended_s[name])
    assert [abs(place - int(name[1:])) <= 2 for place, name in enumerate(ends)] == [True] * 12


def test_a_running_stream_of_one_shape_does_not_keep_out_another() -> None:
    harness = LoopHarness(TimedModel(lambda _k: 0.1))
    harness.submit("first", one_sequence(FakeWork(num_steps=5, key="a")))
    harness.run()
    harness.submit("other", one_sequence(FakeWork(num_steps=5, key="b")))
    for index in range(100):
        harness.submit(f"r{index}", one_sequence(FakeWork(num_steps=5, key="a")))
        harness.run()
        if "other" in harness.ended_s:
            break
    assert len(harness.model.batches) <= 12


def test_tenants_take_turns_to_start() -> None:
    harness = jobs_harness(patience_s=1e9)
    for tenant in "ab":
        for index in range(20):
            harness.submit(f"{tenant}-{index}", one_sequence(FakeWork(num_steps=4)), tenant=tenant)
    harness.run(80)
    ended = [name[0] for name in harness.ended_s]
    assert abs(ended.count("a") - ended.count("b")) <= 2


def test_the_longest_wait_starts_although_heavier_keys_keep_coming() -> None:
    harness = jobs_harness(patience_s=20.0)
    harness.submit("light", one_sequence(FakeWork(num_steps=2)), tenant="light", weight=0.01, priority=Priority.BATCH)
    for index in range(200):
        harness.submit(f"r{index}", one_sequence(FakeWork(num_steps=2)), tenant=f"t{index}", weight=10.0)
        harness.run()
        if "light" in harness.ended_s:
            break
    assert harness.finished("light")
    assert harness.ended_s["light"] - 1000.0 < 60.0


def test_what_is_cancelled_leaves_within_a_step_and_leaks_nothing() -> None:
    harness = jobs_harness()
    for index in range(6):
        harness.submit(f"r{index}", one_sequence(FakeWork(num_steps=5)))
    harness.run(2)
    for index in range(3):
        harness.cancel(f"r{index}")
    harness.run_until_idle()
    assert all(harness.finished(f"r{index}") for index in range(3, 6))
    harness.assert_nothing_leaked()
