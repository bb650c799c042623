"""What every modality's requests report to Prometheus: the same families for all, with the names of vLLM's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from sixfold.core.errors import RequestError, request_error_types
from sixfold.core.messages import Finished

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `ServingMetrics.exposition` returns."""

_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
_GAP_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
_BATCH = tuple(float(2**power) for power in range(13))

_REASONS = tuple(sorted({cls.default_code or "internal_error" for cls in request_error_types().values()}))
_NOT_READY = ("load_failed", "loading", "model_failed")  # codes of `NotReady` that alerts ask for


class _Counts(Protocol):
    def inc(self, amount: float = 1, /) -> None: ...


class _Observes(Protocol):
    def observe(self, amount: float, /) -> None: ...


class ModelMetrics:
    """The request metrics of one model, with the label filled in. Used in the event loop only."""

    def __init__(self, families: _Families, model_name: str) -> None:
        self._families = families
        self._model_name = model_name
        self.queue_time: _Observes = families.queue_time.labels(model_name)
        self.inference_time: _Observes = families.inference_time.labels(model_name)
        self.e2e_latency: _Observes = families.e2e_latency.labels(model_name)
        self.time_to_first: _Observes = families.time_to_first.labels(model_name)
        self.inter_token: _Observes = families.inter_token.labels(model_name)
        self.batch_sequences: _Observes = families.batch_sequences.labels(model_name)
        self._successes: dict[str, _Counts] = {}
        self.num_in_flight = 0
        self._request_s = 0.0
        self._counted_s = 0.0
        self.usage: dict[str, int] = {}
        # A counter that begins at 1 has not risen for Prometheus: the first death of a worker must not be lost.
        for reason in _REASONS:
            families.failures.labels(model_name, reason)
        for reason in (*_REASONS, *_NOT_READY):
            families.rejections.labels(model_name, reason)

    def began(self, now_s: float) -> None:
        """Counts a request that a replica admitted; the monotonic time in seconds."""
        self._request_s = self.request_seconds(now_s)
        self._counted_s = now_s
        self.num_in_flight += 1

    def ended(self, now_s: float) -> None:
        """Counts its end, whatever it was."""
        self._request_s = self.request_seconds(now_s)
        self._counted_s = now_s
        self.num_in_flight -= 1

    def request_seconds(self, now_s: float) -> float:
        """The time that all requests so far spent in flight, together."""
        return self._request_s + self.num_in_flight * (now_s - self._counted_s)

    def finished(self, event: Finished[Any], e2e_s: float) -> None:
        """Counts a request that succeeded ``e2e_s`` seconds after its arrival."""
        timing = event.timing
        self.e2e_latency.observe(e2e_s)
        self.queue_time.observe(timing.queue_s)
        self.inference_time.observe(timing.inference_s)
        if timing.max_batch_sequences:
            self.batch_sequences.observe(timing.max_batch_sequences)
        success = self._successes.get(event.finish_reason)
        if success is None:
            success = self._families.successes.labels(self._model_name, event.finish_reason)
            self._successes[event.finish_reason] = success
        success.inc()
        for name, count in event.usage.counts.items():
            self.usage[name] = self.usage.get(name, 0) + count

    def failed(self, error: RequestError) -> None:
        """Counts an admitted request that failed, was cancelled or expired."""
        self._families.failures.labels(self._model_name, error.code or "internal_error").inc()

    def rejected(self, error: RequestError) -> None:
        """Counts a request that no replica admitted."""
        self._families.rejections.labels(self._model_name, error.code or "internal_error").inc()


class _Families:
    """The metric families of all models, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        model = ("model_name",)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"sixfold:{name}", text, model, buckets=buckets, registry=registry)

        self.queue_time = histogram(
            "request_queue_time_seconds", "From ready to run until the first step, in the replica.", _LATENCY_S
        )
        self.inference_time = histogram("request_inference_time_seconds", "From first to last step.", _LATENCY_S)
        self.e2e_latency = histogram(
            "e2e_request_latency_seconds", "From the request's arrival to its last event.", _LATENCY_S
        )
        self.time_to_first = histogram(
            "time_to_first_token_seconds", "From arrival to the first increment of the answer.", _LATENCY_S
        )
        self.inter_token = histogram("inter_token_latency_seconds", "Between two increments of an answer.", _GAP_S)
        self.batch_sequences = histogram(
            "request_batch_sequences", "Sequences in the largest step that served a finished request.", _BATCH
        )
        self.successes = Counter(
            "sixfold:request_success", "Finished requests.", ("model_name", "finished_reason"), registry=registry
        )
        self.failures = Counter(
            "sixfold:requests_failed", "Admitted requests that failed.", ("model_name", "reason"), registry=registry
        )
        self.rejections = Counter(
            "sixfold:admission_rejections", "Requests not admitted.", ("model_name", "reason"), registry=registry
        )
        self.http_requests = Counter(
            "sixfold:http_requests", "Answered HTTP requests.", ("route", "method", "status"), registry=registry
        )


class _HttpKey(NamedTuple):
    route: str
    method: str
    status: int


class ServingMetrics:
    """All metrics of this process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._families = _Families(self.registry)
        self._models: dict[str, ModelMetrics] = {}
        self._http: dict[_HttpKey, _Counts] = {}

    def model(self, name: str) -> ModelMetrics:
        """The metrics of the model with this registry name."""
        found = self._models.get(name)
        if found is None:
            found = self._models[name] = ModelMetrics(self._families, name)
        return found

    def models(self) -> Iterator[tuple[str, ModelMetrics]]:
        """All models that had a request or were looked at, by name."""
        return iter(tuple(self._models.items()))

    def http_request(self, route: str, method: str, status: int) -> None:
        """Counts an answered HTTP request; ``route`` is the route's template, not the client's path."""
        key = _HttpKey(route, method, status)
        counter = self._http.get(key)
        if counter is None:
            counter = self._http[key] = self._families.http_requests.labels(route, method, str(status))
        counter.inc()

    def exposition(self) -> bytes:
        """All current values as Prometheus text, version 0.0.4."""
        return exposition_of(self.registry)


def exposition_of(registry: Collector) -> bytes:
    """All current values of a registry as Prometheus text, version 0.0.4."""
    return generate_latest(_WithoutCreated(registry))


class _WithoutCreated(CollectorRegistry):
    """A view of a registry without the ``_created`` samples, which double the text and which nobody plots."""

    def __init__(self, registry: Collector) -> None:
        super().__init__(auto_describe=False)
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
