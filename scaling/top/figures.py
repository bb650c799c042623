"""From two looks to the figures of one frame: rates and percentiles of the time between, and what holds now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sixfold.scaling.top.scrape import Scrape


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """One model of a server, or as a gateway sees it. None is what is not told, or did not happen.

    Attributes:
        name: The registry's name.
        state: ``ready``, ``loading`` and so on.
        num_running: Requests in steps.
        num_waiting: Requests before them.
        num_sequences: Sequences in the batch.
        queued_s: Admitted work over the measured rate.
        finished_per_s: Requests.
        failed_per_s: Requests that failed or were refused.
        tokens_per_s: Generated.
        units_per_s: Work of steps, in the model's own unit.
        cache_use: Share of the cache that sequences hold, of the fullest replica.
        hit_rate: Share of the prompt tokens that were found in the cache.
        ttft_s: Time to the first token: 50th and 95th percentile.
        itl_s: Time between tokens: the same.
        e2e_s: Whole requests: the same.
        memory_bytes: What its processes have, on all devices; what it claimed where that is not measured.
    """

    name: str
    state: str | None
    num_running: float | None
    num_waiting: float | None
    num_sequences: float | None
    queued_s: float | None
    finished_per_s: float | None
    failed_per_s: float | None
    tokens_per_s: float | None
    units_per_s: float | None
    cache_use: float | None
    hit_rate: float | None
    ttft_s: tuple[float, float] | None
    itl_s: tuple[float, float] | None
    e2e_s: tuple[float, float] | None
    memory_bytes: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFigures:
    """One server behind a gateway.

    Attributes:
        name: Its id.
        up: Whether it gets requests.
        num_running: Requests at it.
        routed_per_s: Choices of it.
        failed_per_s: Tries that it failed.
    """

    name: str
    up: bool
    num_running: float
    routed_per_s: float | None
    failed_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """All figures of one moment.

    Attributes:
        models: By name.
        replicas: Of a gateway; by name.
        memory: Device, bytes that no model has claimed, bytes in all.
        http_per_s: Answers by their status.
    """

    models: tuple[ModelFigures, ...]
    replicas: tuple[ReplicaFigures, ...]
    memory: tuple[tuple[str, float, float], ...]
    http_per_s: tuple[tuple[str, float], ...]


class Between:
    """What happened between two looks. A counter that fell has been started anew, and counts from zero.

    Args:
        before: The first.
        after: The second.
    """

    def __init__(self, before: Scrape, after: Scrape) -> None:
        self._before = before
        self._after = after
        self._seconds = max(1e-9, after.at_s - before.at_s)

    def grown(self, name: str, **labels: str) -> float | None:
        """By how much counters with these labels grew, together; None where there are none."""
        old = {tuple(sorted(found.items())): value for found, value in self._before.each(name, **labels)}
        grown: float | None = None
        for found, value in self._after.each(name, **labels):
            since = old.get(tuple(sorted(found.items())), 0.0)
            grown = (grown or 0.0) + (value - since if value >= since else value)
        return grown

    def rate(self, name: str, **labels: str) -> float | None:
        """`grown` a second."""
        grown = self.grown(name, **labels)
        return None if grown is None else grown / self._seconds

    def percentiles(self, name: str, **labels: str) -> tuple[float, float] | None:
        """50th and 95th percentile of what a histogram observed meanwhile; None if that was nothing."""
        bounds = {found["le"] for found, _value in self._after.each(f"{name}_bucket", **labels)}
        buckets = [
            (float(bound), self.grown(f"{name}_bucket", **labels, le=bound) or 0.0)
            for bound in sorted(bounds, key=float)
        ]
        if not buckets or buckets[-1][1] <= 0:
            return None
        return quantile(buckets, 0.5), quantile(buckets, 0.95)


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float:
    """A quantile of cumulative buckets, linear within the one that it falls into, as Prometheus computes it.

    Args:
        buckets: Upper bound and count of all up to it, rising; the last bound is infinite.
        share: 0 to 1.
    """
    rank = share * buckets[-1][1] * (1 - 1e-12)  # rounding must not carry a whole rank into the next bucket
    lower, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank and count > below:
            return lower if bound == float("inf") else lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return lower


def frame_of(before: Scrape, after: Scrape) -> Frame:
    """The figures between two looks at one server or gateway."""
    between = Between(before, after)
    names = {
        labels["model_name"]
        for name, found in after.samples.items()
        if not name.startswith("sixfold:memory_")  # the server itself has memory, too, and is no model
        for labels, _value in found
        if labels.get("model_name")
    }
    replicas = [(labels["replica"], value) for labels, value in after.each("gateway_replica_up")]
    free = {labels["device"]: value for labels, value in after.each("memory_free_bytes")}
    statuses = sorted({labels["status"] for labels, _value in after.each("http_requests_total")})
    return Frame(
        models=tuple(_model(name, between, after) for name in sorted(names)),
        replicas=tuple(_replica(name, up, between, after) for name, up in sorted(replicas)),
        memory=tuple(
            (labels["device"], free.get(labels["device"], 0.0), value)
            for labels, value in after.each("memory_capacity_bytes")
        ),
        http_per_s=tuple((status, between.rate("http_requests_total", status=status) or 0.0) for status in statuses),
    )


def _model(name: str, between: Between, now: Scrape) -> ModelFigures:
    of = {"model_name": name}
    queued, rate = now.total("queued_units", **of), now.total("drain_rate_units_per_second", **of)
    queries, hits = between.grown("prefix_cache_queries_total", **of), between.grown("prefix_cache_hits_total", **of)
    failed = [between.rate(counter, **of) for counter in ("requests_failed_total", "admission_rejections_total")]
    return ModelFigures(
        name=name,
        state=now.states.get(name) or _state(now, name),
        num_running=now.total("num_requests_running", **of),
        num_waiting=now.total("num_requests_waiting", **of),
        num_sequences=now.total("num_sequences_running", **of),
        queued_s=queued / rate if queued is not None and rate else None,
        finished_per_s=between.rate("request_success_total", **of),
        failed_per_s=None if failed == [None, None] else sum(value or 0.0 for value in failed),
        tokens_per_s=between.rate("generation_tokens_total", **of),
        units_per_s=between.rate("step_units_total", **of),
        cache_use=max((value for _labels, value in now.each("kv_cache_usage_perc", **of)), default=None),
        hit_rate=hits / queries if queries and hits is not None else None,
        ttft_s=between.percentiles("time_to_first_token_seconds", **of),
        itl_s=between.percentiles("inter_token_latency_seconds", **of),
        e2e_s=between.percentiles("e2e_request_latency_seconds", **of),
        memory_bytes=now.total("memory_measured_bytes", **of) or now.total("memory_bytes", **of),
    )


def _state(now: Scrape, name: str) -> str | None:
    ready = now.total("model_ready", model_name=name)
    return None if ready is None else "ready" if ready else "not ready"


def _replica(name: str, up: float, between: Between, now: Scrape) -> ReplicaFigures:
    return ReplicaFigures(
        name=name,
        up=up > 0,
        num_running=now.total("num_requests_running", replica=name) or 0.0,
        routed_per_s=between.rate("gateway_routed_total", replica=name),
        failed_per_s=between.rate("gateway_replica_failures_total", replica=name),
    )
