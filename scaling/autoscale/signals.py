"""Turns load of any modality into one unit: the replicas that it would keep busy at the service's targets."""

from __future__ import annotations

from sixfold.scaling.autoscale.fleet import Fleet, Point
from sixfold.scaling.spec import ScalingSpec

SIGNALS = ("requests", "work", "cache")
"""The fields of `Point` that are demands."""


def measure(spec: ScalingSpec, fleet: Fleet, share: float, now_s: float) -> Point:
    """The demand of a fleet.

    Args:
        spec: Targets.
        fleet: What was observed.
        share: What a replica is given, in parts of the targets (see `State.share`).
        now_s: For the point.

    Returns:
        For requests: those in flight and held, over the requests that a replica is given. For work: the seconds in which one
        average replica would do what is queued, over the seconds that may wait at one. For cache: the caches in use, over
        the use that is allowed. Signals without a target, and work before any replica's speed is known, are 0.
    """
    given = spec.target_utilization * share
    requests = fleet.num_held + sum(load.num_in_flight for load in fleet.loads)
    return Point(
        at_s=now_s,
        requests=requests / (spec.concurrency_target * given),
        work=_work(fleet) / (spec.target_drain_s * given) if spec.target_drain_s is not None else 0.0,
        cache=_cache(fleet) / (spec.target_cache_use * given) if spec.target_cache_use is not None else 0.0,
    )


def _work(fleet: Fleet) -> float:
    """Seconds in which one replica of the mean speed would finish what all have queued."""
    speeds = [load.units_per_s for load in fleet.loads if load.units_per_s > 0.0]
    if not speeds:
        return 0.0
    return sum(load.queued_units for load in fleet.loads) / (sum(speeds) / len(speeds))


def _cache(fleet: Fleet) -> float:
    return sum(load.cache_use or 0.0 for load in fleet.loads)


def mean_demand(points: tuple[Point, ...], since_s: float) -> tuple[float, str]:
    """The largest signal's mean over the points after ``since_s``, and its name; (0, "requests") without points."""
    recent = [point for point in points if point.at_s > since_s]
    if not recent:
        return 0.0, SIGNALS[0]
    means = {
        "requests": sum(point.requests for point in recent) / len(recent),
        "work": sum(point.work for point in recent) / len(recent),
        "cache": sum(point.cache for point in recent) / len(recent),
    }
    name = max(SIGNALS, key=lambda signal: means[signal])
    return means[name], name
