"""What is foreseen: a trend is followed, a surge is not extended, a season repeats."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.scaling.autoscale.forecast import predict


def test_constant_demand_is_foreseen_as_it_is() -> None:
    assert predict([5.0] * 30, 60, lead_s=300, season_s=None) == pytest.approx(5.0)


def test_a_ramp_is_followed_at_least_half_of_the_way_ahead_and_not_beyond() -> None:
    foreseen = predict([float(n) for n in range(30)], 60, lead_s=180, season_s=None)
    assert 30.0 < foreseen <= 32.5


def test_one_surge_is_not_extended_without_end() -> None:
    assert predict([1.0] * 30 + [100.0], 60, lead_s=3600, season_s=None) < 250.0


def test_a_season_is_foreseen_where_the_trend_points_elsewhere() -> None:
    day = [10.0 + 9.0 * math.sin(2 * math.pi * hour / 24) for hour in range(24)]
    history = (day * 2)[:-1]  # 23 o'clock of the second day comes next
    assert predict(history, 3600, lead_s=7200, season_s=86_400) == pytest.approx(max(day[23], day[0]), rel=0.05)


def test_a_busier_day_scales_the_season() -> None:
    day = [10.0] * 20 + [50.0] * 4
    history = day + [20.0] * 20
    assert predict(history, 3600, lead_s=3600, season_s=86_400) == pytest.approx(100.0, rel=0.02)


@given(st.lists(st.floats(0, 1e6), max_size=80), st.floats(1, 1e4), st.sampled_from([None, 600.0, 3600.0]))
def test_any_history_gives_a_finite_demand(history: list[float], lead_s: float, season_s: float | None) -> None:
    foreseen = predict(history, 60, lead_s=lead_s, season_s=season_s)
    assert 0.0 <= foreseen < math.inf
