"""Moves what a replica is given so that measured times keep a promise."""

from __future__ import annotations

from sixfold.scaling.autoscale.fleet import Fleet
from sixfold.scaling.spec import Slo

MIN_SHARE = 0.25
MAX_SHARE = 4.0
"""A replica is given a quarter to four times its declared targets; whoever needs more has declared the wrong ones."""

_COMFORT = 0.5
"""Below half the promised time a replica can take more. Between the two nothing moves: latency rises steeply near the
limit of a replica, so a narrow band would swing."""

_MORE = 1.05
_LEAST_LESS = 0.67


def pressure(slo: Slo, fleet: Fleet) -> float | None:
    """The worst measured time in parts of its promise: above 1 it is broken; None where nothing was measured."""
    pairs = ((fleet.ttft_s, slo.ttft_s), (fleet.e2e_s, slo.e2e_s))
    parts = [measured / promised for measured, promised in pairs if measured is not None and promised is not None]
    return max(parts, default=None)


def move_share(share: float, pressure: float) -> float:
    """What a replica should be given from now on.

    Args:
        share: What it is given now, in parts of the declared targets.
        pressure: See `pressure`. A broken promise lowers the share in proportion, at most by a third; comfort raises it by a
            twentieth, so that it falls fast and rises slowly.
    """
    if pressure > 1.0:
        share *= max(_LEAST_LESS, 1.0 / pressure)
    elif pressure < _COMFORT:
        share *= _MORE
    return min(MAX_SHARE, max(MIN_SHARE, share))
