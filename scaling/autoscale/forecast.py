"""Foresees demand, so that replicas are ready when it comes and not one cold start later."""

from __future__ import annotations

import math
from collections.abc import Sequence

_LEVEL = 0.5
_TREND = 0.3
_DAMPING = 0.9
"""Half the weight to the last two buckets, a trend that takes about five to believe, and that is trusted less with each
bucket ahead: a ramp is followed, one surge is not extended to the ceiling."""

_RECENT = 5
"""Buckets over which today is compared with the same time of the last season."""


def predict(buckets: Sequence[float], bucket_s: float, *, lead_s: float, season_s: float | None) -> float:
    """The largest demand expected between now and ``lead_s`` from now; never below 0.

    With a whole season of history: the season's shape, scaled by how the last buckets compare with the same ones a season
    ago (seasonal-naive with drift). Before that, or without a season: Holt's linear trend, damped.

    Args:
        buckets: Mean demand of past buckets, oldest first.
        bucket_s: Length of one.
        lead_s: How far to look.
        season_s: Length of a period; None for none.

    Source: Hyndman and Athanasopoulos, Forecasting: Principles and Practice, 3rd edition, sections 5.2, 8.1 and 8.2.
    """
    if not buckets:
        return 0.0
    ahead = max(1, math.ceil(lead_s / bucket_s))
    season = round(season_s / bucket_s) if season_s is not None else 0
    if season >= ahead and len(buckets) >= season + _RECENT:
        return _seasonal(buckets, season, ahead)
    return _holt(buckets, ahead)


def _seasonal(buckets: Sequence[float], season: int, ahead: int) -> float:
    end = len(buckets)
    then = buckets[end - season - _RECENT : end - season]
    now = buckets[end - _RECENT :]
    # Both sums are softened by a tenth of a replica a bucket: a night of nearly nothing must not scale the day a hundredfold.
    growth = (sum(now) + 0.1 * _RECENT) / (sum(then) + 0.1 * _RECENT)
    return max(0.0, growth * max(buckets[end - season : end - season + ahead]))


def _holt(buckets: Sequence[float], ahead: int) -> float:
    level, trend = buckets[0], 0.0
    for value in buckets[1:]:
        before = level
        level = _LEVEL * value + (1 - _LEVEL) * (level + _DAMPING * trend)
        trend = _TREND * (level - before) + (1 - _TREND) * _DAMPING * trend
    reach = _DAMPING * (1 - _DAMPING**ahead) / (1 - _DAMPING)
    return max(0.0, level, level + reach * trend)


def seasons_kept(bucket_s: float, season_s: float | None) -> int:
    """Buckets of history that `predict` can use."""
    return round((season_s or 0.0) / bucket_s) + 60
