"""Histograms that a model fills in its worker and the serving process publishes: counted there, carried as plain numbers."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass

from sixfold.core.family import MetricKind, MetricSpec


class Observations:
    """Observed values of one histogram. Owner: the thread that also calls ``stats()``.

    Args:
        spec: Of kind histogram.
    """

    def __init__(self, spec: MetricSpec) -> None:
        assert spec.kind is MetricKind.HISTOGRAM, spec.name
        assert list(spec.buckets) == sorted(set(spec.buckets)), f"the buckets of {spec.name} must rise"
        self._spec = spec
        self._counts = [0] * (len(spec.buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Counts one value."""
        self._counts[bisect.bisect_left(self._spec.buckets, value)] += 1
        self._sum += value

    def values(self) -> dict[str, float]:
        """What `ReplicaModel.stats` reports for the histogram: nothing before the first value."""
        total = sum(self._counts)
        if total == 0:
            return {}
        found = {_sum_key(self._spec): self._sum}
        found.update({_count_key(self._spec, index): float(count) for index, count in enumerate(self._counts)})
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadObservations:
    """A histogram as Prometheus wants it.

    Attributes:
        buckets: Upper bound as text, and how many values are at most that; the last is ``+Inf`` with all.
        total: Sum of the values.
    """

    buckets: tuple[tuple[str, float], ...]
    total: float


def read_observations(spec: MetricSpec, values: Mapping[str, float]) -> ReadObservations | None:
    """The histogram out of a replica's values, or None if nothing was observed yet."""
    if _sum_key(spec) not in values:
        return None
    rows: list[tuple[str, float]] = []
    running = 0.0
    for index, bound in enumerate((*map(str, spec.buckets), "+Inf")):
        running += values.get(_count_key(spec, index), 0.0)
        rows.append((bound, running))
    return ReadObservations(buckets=tuple(rows), total=values[_sum_key(spec)])


def _sum_key(spec: MetricSpec) -> str:
    return f"{spec.name}/sum"


def _count_key(spec: MetricSpec, index: int) -> str:
    return f"{spec.name}/{index}"
