"""Histograms that a worker counts and the serving process publishes."""

from __future__ import annotations

from sixfold.core.family import MetricKind, MetricSpec
from sixfold.core.observations import Observations, read_observations

SPEC = MetricSpec(name="wait_seconds", kind=MetricKind.HISTOGRAM, help="Waits.", buckets=(0.5, 1.0))


def test_buckets_are_cumulative_and_end_with_all() -> None:
    observed = Observations(SPEC)
    for value in (0.25, 0.5, 0.75, 3.0):
        observed.observe(value)
    found = read_observations(SPEC, observed.values())
    assert found is not None
    assert found.buckets == (("0.5", 2.0), ("1.0", 3.0), ("+Inf", 4.0))
    assert found.total == 4.5


def test_nothing_is_reported_before_the_first_value() -> None:
    assert Observations(SPEC).values() == {}
    assert read_observations(SPEC, {}) is None
