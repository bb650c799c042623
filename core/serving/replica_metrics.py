"""Reads gauges and counters from the replicas when Prometheus asks, so that no step pays for them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from time import monotonic

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sixfold.core.family import MetricKind, MetricSpec
from sixfold.core.observations import read_observations
from sixfold.core.serving.directory import Directory, HostedModel, takes_requests
from sixfold.core.serving.metrics import ServingMetrics

_LABELS = ("model_name", "engine")

_KINDS = {
    MetricKind.COUNTER: CounterMetricFamily,
    MetricKind.GAUGE: GaugeMetricFamily,
    MetricKind.HISTOGRAM: HistogramMetricFamily,
}

MANAGER_METRICS = (
    MetricSpec(name="num_preemptions_total", kind=MetricKind.COUNTER, help="Sequences that lost their memory."),
    MetricSpec(name="num_sequences_waiting", kind=MetricKind.GAUGE, help="Prepared sequences outside the batch."),
    MetricSpec(
        name="decisions_total", kind=MetricKind.COUNTER, help="Changes of its own settings; see GET /decisions."
    ),
    MetricSpec(name="steps_total", kind=MetricKind.COUNTER, help="Steps."),
    MetricSpec(name="step_units_total", kind=MetricKind.COUNTER, help="Work done by steps, in the model's unit."),
    MetricSpec(name="step_seconds_total", kind=MetricKind.COUNTER, help="Time that the device was busy with steps."),
    MetricSpec(name="step_budget_units", kind=MetricKind.GAUGE, help="Work that a step may do now."),
    MetricSpec(name="batch_sequences", kind=MetricKind.GAUGE, help="Sequences in the last step."),
    MetricSpec(name="max_batch_sequences", kind=MetricKind.GAUGE, help="Sequences in the largest step so far."),
)
"""What every replica's batch manager reports next to its family's own values."""


class ReplicaCollector(Collector):
    """The values that live outside of requests: queues, batches, and what each family reports of its own.

    Args:
        directory: Where the replicas are.
        metrics: Where requests in flight and usage are counted.
    """

    def __init__(self, directory: Directory, metrics: ServingMetrics) -> None:
        self._directory = directory
        self._metrics = metrics

    def describe(self) -> Iterator[Metric]:
        """Nothing: what there will be depends on the models."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All values at this moment."""
        models = tuple(self._directory.models())
        for model in models:
            self._metrics.model(model.name)  # its counters are there, at 0, before its first request
        yield from self._queues(models)
        declared = {spec.name: spec for spec in MANAGER_METRICS}
        for model in models:
            for spec in _own_metrics(model):
                declared.setdefault(spec.name, spec)
        yield from self._declared(models, declared)
        yield from self._usage(frozenset(declared))

    def _queues(self, models: tuple[HostedModel, ...]) -> Iterator[Metric]:
        ready = GaugeMetricFamily("sixfold:model_ready", "1 while the model takes requests.", labels=("model_name",))
        running = GaugeMetricFamily("sixfold:num_requests_running", "Requests in steps.", labels=("model_name",))
        waiting = GaugeMetricFamily("sixfold:num_requests_waiting", "Requests before steps.", labels=_LABELS)
        sequences = GaugeMetricFamily("sixfold:num_sequences_running", "Sequences in the batch.", labels=_LABELS)
        queued = GaugeMetricFamily("sixfold:queued_units", "Admitted work that is not done.", labels=_LABELS)
        rate = GaugeMetricFamily("sixfold:drain_rate_units_per_second", "Work done per second.", labels=_LABELS)
        spent = CounterMetricFamily(
            "sixfold:request_seconds", "Time that requests spent in flight, together.", labels=("model_name",)
        )
        now_s = monotonic()
        for name, metrics in self._metrics.models():
            spent.add_metric((name,), metrics.request_seconds(now_s))
        in_flight = {name: metrics.num_in_flight for name, metrics in self._metrics.models()}
        for model in models:
            ready.add_metric((model.name,), float(takes_requests(model)))
            num_waiting = 0
            for index, replica in enumerate(model.replicas):
                labels, snapshot = (model.name, str(index)), replica.snapshot
                num_waiting += snapshot.num_waiting
                waiting.add_metric(labels, snapshot.num_waiting)
                sequences.add_metric(labels, snapshot.num_running)
                queued.add_metric(labels, snapshot.queued_units)
                rate.add_metric(labels, snapshot.units_per_s)
            running.add_metric((model.name,), max(0, in_flight.get(model.name, 0) - num_waiting))
        yield from (ready, running, waiting, sequences, queued, rate, spent)

    def _declared(self, models: tuple[HostedModel, ...], declared: dict[str, MetricSpec]) -> Iterator[Metric]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily] = {}
        for name, spec in declared.items():
            families[name] = _KINDS[spec.kind](f"sixfold:{name}", spec.help, labels=_LABELS)
        for model in models:
            for spec in (*MANAGER_METRICS, *_own_metrics(model)):
                family = families[spec.name]
                for index, replica in enumerate(model.replicas):
                    labels, values = (model.name, str(index)), replica.snapshot.metrics
                    if isinstance(family, HistogramMetricFamily):
                        found = read_observations(spec, values)
                        if found is not None:
                            family.add_metric(labels, buckets=list(found.buckets), sum_value=found.total)
                    elif spec.name in values:
                        family.add_metric(labels, values[spec.name])
        yield from families.values()

    def _usage(self, declared: frozenset[str]) -> Iterator[Metric]:
        families: dict[str, CounterMetricFamily] = {}
        for model_name, metrics in self._metrics.models():
            for counted, total in metrics.usage.items():
                name = f"{re.sub(r'[^a-zA-Z0-9_]', '_', counted)}_total"
                if name in declared:
                    continue  # the family reports it itself, also while requests run
                family = families.get(name)
                if family is None:
                    text = f"{counted.replace('_', ' ')} of finished requests."
                    family = families[name] = CounterMetricFamily(f"sixfold:{name}", text, labels=("model_name",))
                family.add_metric((model_name,), total)
        yield from families.values()


def _own_metrics(model: HostedModel) -> tuple[MetricSpec, ...]:
    return model.family.metrics if model.family is not None else ()
