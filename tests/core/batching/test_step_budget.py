"""The step budget goes where its objective says, inside its bounds, and stays there. Steps take a + b * u seconds."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.core.batching.budget import Objective, ObjectiveKind, StepBudget, StepTime
from sixfold.core.batching.model import StepRange
from sixfold.core.messages import Increment
from tests.core.batching.loop_harness import LoopHarness
from tests.fakes import FakeStepModel, FakeWork, one_sequence

WIDE = StepRange(min_units=8, initial_units=256, max_units=100_000)


def saturate(
    budget: StepBudget, step_s: Callable[[int], float], num_steps: int = 2000, *, noise: float = 0.0, seed: int = 0
) -> list[int]:
    """Feeds full steps; returns the budgets of the last quarter."""
    source = random.Random(seed)
    seen: list[int] = []
    for _ in range(num_steps):
        units = budget.units
        budget.observe_step(units, step_s(units) * (1.0 + noise * source.uniform(-1.0, 1.0)), limited=True)
        seen.append(budget.units)
    return seen[-num_steps // 4 :]


def test_the_fit_finds_the_fixed_part_and_the_slope() -> None:
    time = StepTime()
    for units in (10, 200, 50, 1000, 400) * 20:
        time.observe(units, 0.005 + 0.0001 * units)
    fixed_s, per_unit_s = time.fit
    assert fixed_s == pytest.approx(0.005, rel=0.01)
    assert per_unit_s == pytest.approx(0.0001, rel=0.01)


@pytest.mark.parametrize("initial_units", [8, 256, 50_000])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_for_throughput_the_fixed_part_becomes_five_percent_even_if_all_steps_are_full(
    initial_units: int, noise: float
) -> None:
    bounds = StepRange(min_units=8, initial_units=initial_units, max_units=100_000)
    budget = StepBudget(bounds, Objective())
    last = saturate(budget, lambda units: 0.002 + 1e-5 * units, noise=noise)
    assert min(last) >= 0.5 * 3800  # 19 a / b; where half as much costs 10% and a quarter 17%
    assert max(last) <= 2.0 * 3800


def test_work_that_gets_cheaper_the_more_is_done_at_once_gets_the_largest_budget() -> None:
    budget = StepBudget(StepRange(min_units=8, initial_units=64, max_units=2048), Objective())
    last = saturate(budget, lambda _units: 0.01)
    assert min(last) >= 0.65 * 2048


def test_a_budget_that_does_not_bind_does_not_grow() -> None:
    budget = StepBudget(WIDE, Objective())
    source = random.Random(0)
    for _ in range(2000):
        budget.observe_step(source.randint(1, 100), 0.01 * source.uniform(0.9, 1.1), limited=False)
    assert budget.units <= 256


@pytest.mark.parametrize("target_s", [0.05, 0.2])
def test_for_time_between_increments_a_step_takes_at_most_the_target(target_s: float) -> None:
    budget = StepBudget(WIDE, Objective(kind=ObjectiveKind.P95_ITL_S, target_s=target_s))
    last = saturate(budget, lambda units: 0.01 + 0.001 * units, noise=0.05)
    step_s = [0.01 + 0.001 * units for units in last]
    assert max(step_s) <= target_s * 1.15
    assert max(step_s) >= target_s * 0.75


def test_for_time_to_first_increment_a_step_takes_at_most_half_of_the_target() -> None:
    budget = StepBudget(WIDE, Objective(kind=ObjectiveKind.P95_TTFT_S, target_s=0.2))
    last = saturate(budget, lambda units: 0.01 + 0.001 * units)
    assert max(0.01 + 0.001 * units for units in last) <= 0.1 * 1.05


def test_an_impossible_target_leaves_the_least_budget() -> None:
    budget = StepBudget(WIDE, Objective(kind=ObjectiveKind.P95_ITL_S, target_s=0.001))
    last = saturate(budget, lambda units: 0.01 + 0.001 * units)
    assert max(last) == WIDE.min_units


def test_the_budget_follows_a_device_that_became_slower() -> None:
    budget = StepBudget(WIDE, Objective(kind=ObjectiveKind.P95_ITL_S, target_s=0.1))
    saturate(budget, lambda units: 0.01 + 0.0001 * units)
    last = saturate(budget, lambda units: 0.01 + 0.001 * units)
    assert max(last) <= 90 * 1.15


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(ObjectiveKind),
    target_s=st.floats(1e-4, 100.0),
    steps=st.lists(st.tuples(st.integers(1, 5000), st.floats(0.0, 10.0), st.booleans()), min_size=20, max_size=80),
)
def test_whatever_is_measured_the_budget_stays_in_its_bounds_and_moves_by_small_steps(
    kind: ObjectiveKind, target_s: float, steps: list[tuple[int, float, bool]]
) -> None:
    budget = StepBudget(WIDE, Objective(kind=kind, target_s=target_s))
    seen = [budget.units]
    for units, seconds, limited in steps * 4:
        budget.observe_latency(kind, seconds)
        budget.observe_step(units, seconds, limited=limited)
        seen.append(budget.units)
    assert all(WIDE.min_units <= units <= WIDE.max_units for units in seen)
    assert all(0.45 * before - 1 <= after <= 2.2 * before + 1 for before, after in pairwise(seen))


def arrivals(harness: LoopHarness, *, period_s: float, work: FakeWork, until_s: float) -> None:
    """Open-loop arrivals on the fake clock."""
    next_s = harness.clock()
    index = 0
    while harness.clock() < until_s:
        while next_s <= harness.clock():
            harness.submit(f"r{index}", one_sequence(work), tenant=f"t{index % 7}")
            index += 1
            next_s += period_s
        if not harness.loop.run_once():
            harness.clock.advance(max(1e-6, next_s - harness.clock()))


@pytest.mark.parametrize("kind", [ObjectiveKind.P95_LATENCY_S, ObjectiveKind.P95_TTFT_S])
def test_a_feasible_latency_target_is_met_under_load(kind: ObjectiveKind) -> None:
    # 40 requests/s of 64 units: 60% of a device with a = 5 ms, b = 0.2 ms.
    model = FakeStepModel(
        fixed_s=0.005, unit_s=0.0002, step_range=StepRange(min_units=8, initial_units=4096, max_units=8192)
    )
    harness = LoopHarness(model, objective=Objective(kind=kind, target_s=0.3))
    began_s = harness.clock()
    arrivals(harness, period_s=1 / 40, work=FakeWork(divisible_units=60, num_steps=4), until_s=began_s + 60.0)
    late = [
        harness.ended_s[request_id] - (began_s + int(request_id[1:]) / 40)
        for request_id, events in harness.events.items()
        if isinstance(events[-1] if events else None, Increment) is False and request_id in harness.ended_s
    ]
    tail = sorted(late[len(late) // 2 :])
    assert tail[int(0.95 * len(tail))] <= 0.3
    assert WIDE.min_units <= harness.budget.units <= 8192


def test_over_its_target_with_a_standing_queue_the_budget_grows_towards_throughput() -> None:
    budget = StepBudget(WIDE, Objective(kind=ObjectiveKind.P95_LATENCY_S, target_s=1.0))
    for _ in range(64):
        budget.observe_latency(ObjectiveKind.P95_LATENCY_S, 5.0)
    last = saturate(budget, lambda units: 0.01 + 0.0001 * units, 800)
    assert min(last) >= 0.65 * 1900  # 19 a / b


def test_over_its_target_without_a_queue_the_budget_shrinks() -> None:
    budget = StepBudget(WIDE, Objective(kind=ObjectiveKind.P95_LATENCY_S, target_s=1.0))
    source = random.Random(0)
    for _ in range(400):
        units = source.randint(100, 256)
        budget.observe_latency(ObjectiveKind.P95_LATENCY_S, 1.5)
        budget.observe_step(units, 0.01 + 0.001 * units, limited=False)
    assert budget.units < 128
