"""Hub, agents and routing under partitions, crashes, lost sites, late messages and skewed clocks: what must hold always, holds.

One seed is one world, in virtual time and in one thread. To look at one: ``print(run_seed(58).story)``.
"""

from dataclasses import fields

import pytest

from tests.scaling.simulation.faults import Outcome, run_seed
from tests.scaling.simulation.fleet import Bugs


def run_seeds(first: int, count: int) -> list[Outcome]:
    outcomes = [run_seed(seed) for seed in range(first, first + count)]
    broken = [outcome for outcome in outcomes if outcome.broken]
    if broken:
        pytest.fail(f"{len(broken)} of {count} seeds are broken: {[item.seed for item in broken]}\n{broken[0].story}")
    return outcomes


def test_invariants_hold_over_a_hundred_seeds() -> None:
    outcomes = run_seeds(0, 100)
    assert sum(outcome.num_plans for outcome in outcomes) > 300, "faults must make the hub plan, or nothing was shown"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_invariants_hold_over_thousands_of_seeds() -> None:
    run_seeds(10_000, 5000)


def test_a_seed_gives_the_same_events_each_time() -> None:
    first, second = run_seed(7), run_seed(7)
    assert first == second
    assert len(first.events) > 10


@pytest.mark.parametrize("bug", [field.name for field in fields(Bugs)])
def test_a_planted_bug_is_found(bug: str) -> None:
    """Without this nobody knows whether the invariants look at anything."""
    assert any(run_seed(seed, Bugs(**{bug: True})).broken for seed in range(120))


def test_a_broken_seed_tells_its_story() -> None:
    story = run_seed(0, Bugs(ignores_locks=True)).story
    assert "ap runs notes against its lock" in story
    assert "epoch 1 by hub-" in story
