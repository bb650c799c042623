"""The price of a guess is what a further row was seen to take, and a cautious figure until then."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.plugins.llm.ngram import NgramProposer
from sixfold.plugins.llm.row_cost import RowCost
from sixfold.plugins.llm.sequence import SequenceState
from sixfold.plugins.llm.speculation import Speculator

PRIOR = 0.1


def seen(steps: list[tuple[int, float]]) -> RowCost:
    found = RowCost()
    for num_rows, seconds in steps:
        found.observe(num_rows, seconds)
    return found


def steps_of(share: float, count: int, *, noise: float = 0.0, seed: int = 1) -> list[tuple[int, float]]:
    """Steps of one to six rows, of which each further one takes this share of 20 ms."""
    draw = random.Random(seed)
    rows = [draw.randint(1, 6) for _ in range(count)]
    return [(each, 0.02 * (1.0 + share * (each - 1)) * draw.uniform(1 - noise, 1 + noise)) for each in rows]


@pytest.mark.parametrize("share", [0.02, 0.07, 0.3, 0.9])
def test_the_cost_of_a_row_is_found_where_steps_differ_in_their_rows(share: float) -> None:
    assert seen(steps_of(share, 300)).of_guess(1) == pytest.approx(share, rel=0.01)
    assert seen(steps_of(share, 2000, noise=0.1)).of_guess(1) == pytest.approx(share, abs=0.02)


def test_a_guess_is_dearer_where_more_share_the_step_and_never_dearer_than_a_step_of_its_own() -> None:
    found = seen(steps_of(0.25, 300))
    costs = [found.of_guess(num_sequences) for num_sequences in (1, 2, 4, 8, 1000)]
    assert costs == pytest.approx([0.25, 0.4, 4 / 7, 8 / 11, 1.0], rel=0.01)
    assert costs[-1] <= 1.0


def test_before_enough_was_measured_and_where_all_steps_are_alike_the_cautious_figure_holds() -> None:
    for found in (RowCost(), seen(steps_of(0.5, 100)), seen([(4, 0.02)] * 5000)):
        assert [found.of_guess(num_sequences) for num_sequences in (1, 4)] == [PRIOR, 4 * PRIOR]


def test_a_single_try_each_fifty_steps_tells_enough() -> None:
    steps = [(2, 0.03) if each % 50 == 0 else (1, 0.02) for each in range(2000)]
    assert seen(steps).of_guess(1) == pytest.approx(0.5, rel=0.05)


def test_a_step_that_something_else_held_up_is_no_price_of_rows() -> None:
    steps = steps_of(0.05, 600)
    for at in range(100, 600, 100):
        steps[at] = (6, 10.0)
    assert seen(steps).of_guess(1) < 0.15


def test_a_cost_that_was_true_once_is_forgotten() -> None:
    assert seen([*steps_of(0.9, 2000), *steps_of(0.05, 3000, seed=2)]).of_guess(1) == pytest.approx(0.05, abs=0.02)


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 100)), max_size=400))
def test_whatever_is_measured_the_cost_stays_a_share(steps: list[tuple[int, float]]) -> None:
    assert 0.01 <= seen(steps).of_guess(1) <= 1.0


def sequences(*computed: int) -> list[SequenceState]:
    """Of prompts of ten tokens, so many of whose tokens were computed."""
    return [cast("SequenceState", SimpleNamespace(num_computed=each, num_prompt_tokens=10)) for each in computed]


def speculator() -> Speculator:
    return Speculator(NgramProposer(min_match=2, max_match=4), num_tokens=5, max_sequences=4)


def test_only_steps_that_decode_and_that_guesses_may_join_tell_a_cost() -> None:
    told = speculator()
    for rows, seconds in steps_of(0.5, 300):
        told.observe_step(sequences(10), [rows], seconds)
    assert told.guess_cost(1) == pytest.approx(0.5, rel=0.01)
    for others in (sequences(10, 4), sequences(*[10] * 5)):
        for rows, seconds in steps_of(0.01, 3000):
            told.observe_step(others, [rows] * len(others), seconds)
    assert told.guess_cost(1) == pytest.approx(0.5, rel=0.01)


def test_a_step_whose_sequences_are_all_gone_asks_for_no_price() -> None:
    told = speculator()
    for rows in (1, 2, 3, 4) * 100:
        told.observe_step(sequences(10), [rows], 0.01 * rows)  # nothing is fixed: without rows a step takes no time
    told.propose([])
