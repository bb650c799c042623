"""The speed of prefill replicas follows what prompts take, within what was declared, and forgets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.core.decisions import DecisionLog
from sixfold.scaling.disagg.speed import PrefillSpeed


def speed(log: DecisionLog | None = None) -> PrefillSpeed:
    return PrefillSpeed(1000.0, model="m", decisions=log or DecisionLog(lambda: 0.0))


def test_before_a_prompt_was_computed_the_declared_speed_counts() -> None:
    assert speed().tokens_per_s(5.0) == 1000.0


def test_prompts_that_take_twice_as_long_halve_the_speed() -> None:
    found = speed()
    for number in range(100):
        found.observe(2000.0, 4.0, 4.0 * number)
    assert found.tokens_per_s(400.0) == pytest.approx(500.0, rel=0.02)


def test_without_prompts_the_declared_speed_comes_back() -> None:
    found = speed()
    for number in range(20):
        found.observe(2000.0, 8.0, 8.0 * number)
    assert found.tokens_per_s(160.0) < 300.0
    assert found.tokens_per_s(160.0 + 3600.0) == pytest.approx(1000.0, rel=0.001)


@given(st.lists(st.tuples(st.floats(0.0, 1e6), st.floats(-1.0, 1e4), st.floats(-1e4, 1e4)), max_size=20))
def test_the_speed_stays_near_what_was_declared_whatever_is_measured(seen: list[tuple[float, float, float]]) -> None:
    found = speed()
    for num_tokens, seconds, now_s in seen:
        found.observe(num_tokens, seconds, now_s)
        assert 250.0 <= found.tokens_per_s(now_s) <= 4000.0


def test_a_speed_that_has_moved_is_a_decision_with_its_measurements_and_bounds() -> None:
    now_s = 0.0
    log = DecisionLog(lambda: now_s)
    found = speed(log)
    now_s = 60.0
    found.observe(3000.0, 9.0, 60.0)
    (decision,) = log.recent
    assert (decision.what, decision.source, decision.before, decision.after) == (
        "prefill_tokens_per_s", "m", 1000.0, 400.0,
    )  # fmt: skip
    assert decision.reason == "3000 prompt tokens took 9 s lately"
    assert "declared 1000, 250..4000" in decision.objective
