"""What the gateway reports to Prometheus: vLLM's names where there are such, with the prefix that all of Sixfold has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sixfold.core.serving.metrics import exposition_of

_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)

Gauges = Callable[[], Mapping[str, Mapping[tuple[str, ...], float]]]
"""Present values of each of `GAUGES`, by the values of its labels."""

GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "num_requests_running": ("Requests at replicas.", ("replica",)),
    "num_requests_waiting": ("Requests that wait in the gateway.", ("model_name",)),
    "gateway_replica_up": ("1 for a replica that gets requests, 0 for one that does not.", ("replica", "region")),
    "gateway_buffered_bytes": ("Request bodies that are held.", ()),
    "decisions_total": ("Changes of the gateway's own settings; see GET /decisions.", ()),
    "gateway_plan_epoch": ("Epoch of the hub's plan that holds; 0 for none.", ()),
    "gateway_agent_reached": ("1 for an agent that answered last time.", ("agent",)),
    "gateway_kv_blocks": ("Blocks that replicas have announced as cached.", ("replica",)),
}


class _Present(Collector):
    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        values = self._gauges()
        for name, (text, labels) in GAUGES.items():
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = kind(f"sixfold:{name}", text, labels=labels)
            for of_labels, value in values.get(name, {}).items():
                family.add_metric(of_labels, value)
            yield family


class GatewayMetrics:
    """All metrics of one gateway, in a registry of its own. Model names come from replicas, never from clients.

    Args:
        gauges: Read when the metrics are.
    """

    def __init__(self, gauges: Gauges) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Present(gauges))
        model = ("model_name",)

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Counter:
            return Counter(f"sixfold:{name}", text, labels, registry=self._registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"sixfold:{name}", text, model, buckets=_LATENCY_S, registry=self._registry)

        self.time_to_first = histogram("time_to_first_token_seconds", "From arrival to the answer's first bytes.")
        self.e2e_latency = histogram("e2e_request_latency_seconds", "From arrival to the answer's last byte.")
        self.queue_time = histogram("request_queue_time_seconds", "In the gateway's queue.")
        self.successes = counter("request_success", "Answers below 400 that were complete.", model)
        self.failures = counter("requests_failed", "Admitted requests that failed.", ("model_name", "reason"))
        self.rejections = counter("admission_rejections", "Requests not admitted.", ("model_name", "reason"))
        self.routed = counter("gateway_routed", "Choices of a replica.", ("model_name", "replica", "reason"))
        self.retries = counter("gateway_retries", "Second tries.", ("model_name", "reason"))
        self.hedges = counter("gateway_hedges", "Second replicas for late requests.", ("model_name", "outcome"))
        self.resumes = counter("gateway_resumed_streams", "Streams that went on elsewhere.", ("model_name", "outcome"))
        self.splits = counter(
            "gateway_split_prompts", "Prompts that could be computed elsewhere.", ("model_name", "outcome")
        )
        self.lost = counter("gateway_replica_failures", "Failed tries.", ("replica", "reason"))
        self.sent_to_sites = counter(
            "gateway_site_requests", "Tries by the site that got them.", ("model_name", "site")
        )
        self.unsaved = counter(
            "gateway_state_write_failures", "Times that the last plan could not be written to the disk.", ()
        )
        self.registry_failures = counter(
            "gateway_registry_failures", "Times that the registry could not be read or written.", ()
        )
        self.prompt_units = counter("prefix_cache_queries", "Prompt tokens or the like that were routed.", model)
        self.cached_units = counter("prefix_cache_hits", "Those believed to be cached where they went.", model)

    def exposition(self) -> bytes:
        """All current values as Prometheus text, version 0.0.4."""
        return exposition_of(self._registry)
