"""Renders a service's scaling for Kubernetes: Prometheus queries that are our signals, and KEDA's ScaledObject over them.

Kubernetes then computes the largest of ``ceil(query / threshold)``, which is the same wish as ours without panic window,
objective and forecast: what it lacks is said in docs/scaling.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import yaml

from sixfold.core.autoscaling.load import CACHE_USE
from sixfold.scaling.spec import ScalingSpec, ServiceSpec

_STALE_S = 15
"""Seconds between two looks; a server's figures change faster, and Prometheus scrapes about as often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A signal in Prometheus.

    Attributes:
        name: As in `sixfold.scaling.autoscale.signals`.
        text: PromQL; the demand of the whole service.
        threshold: How much of it a replica is given.
    """

    name: str
    text: str
    threshold: float


def queries(spec: ScalingSpec, model: str) -> tuple[Query, ...]:
    """The signals of a model that have a target."""
    name = model.replace("\\", r"\\").replace('"', r"\"")
    label = f'{{model_name="{name}"}}'
    window = f"[{max(_STALE_S * 2, math.ceil(spec.window_s))}s]"
    share = spec.target_utilization
    found = [
        Query(
            name="requests",
            text=f"sum(rate(sixfold:request_seconds_total{label}{window}))",
            threshold=spec.concurrency_target * share,
        )
    ]
    if spec.target_drain_s is not None:
        speed = f"avg(sixfold:drain_rate_units_per_second{label} > 0)"
        found.append(
            Query(
                name="work", text=f"sum(sixfold:queued_units{label}) / {speed}", threshold=spec.target_drain_s * share
            )
        )
    if spec.target_cache_use is not None:
        text = f"sum(avg_over_time(sixfold:{CACHE_USE}{label}{window}))"
        found.append(Query(name="cache", text=text, threshold=spec.target_cache_use * share))
    return tuple(found)


def scaled_object(service: ServiceSpec, *, name: str, prometheus: str, kind: str = "Deployment") -> str:
    """KEDA's manifest of a service, as YAML.

    Args:
        service: What is scaled.
        name: Of the Kubernetes object that is scaled, in the manifest's namespace.
        prometheus: Address of Prometheus as KEDA reaches it.
        kind: Of that object.
    """
    spec = service.scaling
    delay_s = math.ceil(spec.scale_down_delay_s)
    manifest: dict[str, Any] = {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": kind, "name": name},
            "pollingInterval": _STALE_S,
            "cooldownPeriod": delay_s,
            "minReplicaCount": spec.min_replicas,
            "maxReplicaCount": spec.max_replicas,
            # Without figures nothing shrinks: a fleet whose Prometheus is down serves on.
            "fallback": {
                "failureThreshold": 3,
                "replicas": max(1, spec.min_replicas),
                "behavior": "currentReplicasIfHigher",
            },
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(spec, delay_s)}},
            "triggers": [
                {
                    "type": "prometheus",
                    "name": query.name,
                    "metricType": "AverageValue",
                    "metadata": {
                        "serverAddress": prometheus,
                        "query": query.text,
                        "threshold": f"{query.threshold:g}",
                        "ignoreNullValues": "false" if query.name == "requests" else "true",
                    },
                }
                for query in queries(spec, service.model)
            ],
        },
    }
    return yaml.safe_dump(manifest, sort_keys=False, width=1000)


def _behavior(spec: ScalingSpec, delay_s: int) -> dict[str, Any]:
    """Kubernetes counts in parts of all replicas where we count in parts of the superfluous ones: it may go faster."""
    percent = max(1, math.floor(100 * spec.max_scale_down_rate))
    return {
        "scaleUp": {"stabilizationWindowSeconds": 0},
        "scaleDown": {
            "stabilizationWindowSeconds": delay_s,
            "policies": [{"type": "Percent", "value": percent, "periodSeconds": max(1, min(1800, delay_s))}],
        },
    }
