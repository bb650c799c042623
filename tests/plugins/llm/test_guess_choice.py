"""Guesses or steps ahead: whichever gives more tokens a second is used, without a cost to speak of for trying the other."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.plugins.llm.guess_choice import GuessChoice


def run(
    choice: GuessChoice, steps: int, seconds: Callable[[bool], float], *, num_sequences: int = 1, num_tokens: int = 1
) -> float:
    """Seconds of so many steps, each of the way that is chosen for it; told one step late, as steps in flight are."""
    total, late = 0.0, None
    for _ in range(steps):
        guessed = choice.guesses(num_sequences)
        took = seconds(guessed)
        total += took
        if late is not None:
            choice.observe(num_sequences, guessed=late[0], num_tokens=num_tokens, seconds=late[1])
        late = guessed, took
    return total


def test_it_begins_with_guesses() -> None:
    assert GuessChoice().guesses(1)
    assert GuessChoice().seconds(4) == (float("inf"), float("inf"))


@pytest.mark.parametrize("guesses_win", [True, False])
def test_the_faster_way_is_used(guesses_win: bool) -> None:
    choice = GuessChoice()
    run(choice, 200, lambda guessed: 0.002 if guessed == guesses_win else 0.003)
    assert choice.guesses(1) is guesses_win
    assert choice.seconds(1) == pytest.approx((0.002, 0.003) if guesses_win else (0.003, 0.002))


def test_ways_that_are_the_same_within_what_is_measured_are_not_changed() -> None:
    choice = GuessChoice()
    run(choice, 5000, lambda guessed: 0.002 if guessed else 0.00199)
    assert choice.guesses(1)


def test_tokens_count_and_not_steps() -> None:
    choice = GuessChoice()
    for _ in range(200):
        guessed = choice.guesses(1)
        choice.observe(1, guessed=guessed, num_tokens=3 if guessed else 1, seconds=0.005 if guessed else 0.002)
    assert choice.guesses(1)


def test_numbers_of_sequences_that_differ_much_are_chosen_for_apart() -> None:
    choice = GuessChoice()
    run(choice, 200, lambda guessed: 0.001 if guessed else 0.002, num_sequences=1)
    run(choice, 200, lambda guessed: 0.002 if guessed else 0.001, num_sequences=8, num_tokens=8)
    assert choice.guesses(1) and not choice.guesses(8)
    assert not choice.guesses(15)  # as 8


def test_a_text_that_changes_is_noticed() -> None:
    choice = GuessChoice()
    run(choice, 3000, lambda guessed: 0.003 if guessed else 0.002)
    assert not choice.guesses(1)
    run(choice, 3000, lambda guessed: 0.001 if guessed else 0.002)
    assert choice.guesses(1)


def test_a_change_is_told_once() -> None:
    choice = GuessChoice()
    told = 0
    for _ in range(3000):
        guessed = choice.guesses(1)
        told += choice.observe(1, guessed=guessed, num_tokens=1, seconds=0.003 if guessed else 0.002)
    assert told == 1


def test_a_way_that_can_not_be_taken_is_not_waited_for() -> None:
    choice = GuessChoice()  # as where no step can begin ahead: on a CPU, or with grammars
    wishes = [
        choice.guesses(1) for _ in range(2000) if not choice.observe(1, guessed=True, num_tokens=1, seconds=0.002)
    ]
    assert len(wishes) == 2000
    assert wishes.index(False) < 40  # it is tried
    assert sum(wishes) > 1400  # but no longer than a trial may take, and ever more rarely
    assert choice.seconds(1)[1] == float("inf")


def test_the_number_of_sequences_may_change_at_every_step() -> None:
    """A step takes as long for seven as for four, so a token of four takes longer; that says nothing of the ways."""
    source, choice = random.Random(1), GuessChoice()
    num_wrong = 0
    num_sequences = 4
    for step in range(20_000):
        if step % 20 == 0:
            num_sequences = source.randrange(4, 8)
        guessed = choice.guesses(num_sequences)
        num_wrong += guessed
        seconds = 0.0022 if guessed else 0.002
        choice.observe(num_sequences, guessed=guessed, num_tokens=num_sequences, seconds=seconds)
    assert num_wrong < 400


def test_a_step_that_was_held_up_says_little_of_its_way() -> None:
    choice, num_wrong = GuessChoice(), 0
    for step in range(20_000):
        guessed = choice.guesses(1)
        num_wrong += guessed
        seconds = 0.3 if step % 300 == 7 else 0.0023 if guessed else 0.002
        choice.observe(1, guessed=guessed, num_tokens=1, seconds=seconds)
    assert num_wrong < 600


@settings(max_examples=60, deadline=None)
@given(
    slower=st.floats(1.1, 3.0),
    guesses_win=st.booleans(),
    noise=st.floats(0.0, 0.3),
    seed=st.integers(0, 1000),
    num_sequences=st.integers(1, 64),
)
def test_trying_costs_little_and_noise_does_not_fool_it(
    slower: float, guesses_win: bool, noise: float, seed: int, num_sequences: int
) -> None:
    source, choice, steps = random.Random(seed), GuessChoice(), 20_000

    def seconds(guessed: bool) -> float:
        return source.uniform(1 - noise, 1 + noise) * (1.0 if guessed == guesses_win else slower)

    assert run(choice, steps, seconds, num_sequences=num_sequences) <= steps * 1.06
