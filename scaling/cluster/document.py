"""Services as the document that Ray Serve is configured with: the same for a laptop, a cluster and KubeRay's RayService."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sixfold.scaling.cluster.replica import ReplicaSettings
from sixfold.scaling.spec import PlacementSpec, ServiceSpec

REGION_LABEL = "region"
"""The label of a machine that says where it stands."""

DEPLOYMENT = "replica"
"""Ray Serve's name of the one deployment in each service's application."""

IMPORT_PATH = "sixfold.scaling.cluster.app:build"
"""What Ray Serve imports; by it an application is known as one of ours."""

_NO_PROXY = "Disabled"

_HEALTH_PERIOD_S = 1.0
_HEALTH_TIMEOUT_S = 10.0
_STOP_MARGIN_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployedService:
    """A service with what it takes to run it.

    Attributes:
        spec: What and where.
        replicas: Settings of each replica; changed ones replace the replicas one after the other.
        name: Of its own in the cluster; two revisions of one model are two services. Empty: the model's.
        num_replicas: How many; a change starts or drains some and leaves the others alone. With 0 the service is not in the
            document: Ray Serve knows no deployment without replicas.
    """

    spec: ServiceSpec
    replicas: ReplicaSettings
    num_replicas: int
    name: str = ""

    @property
    def application(self) -> str:
        """Ray Serve's name of it."""
        return self.name or self.spec.model


def serve_document(
    services: Sequence[DeployedService], *, others: Sequence[Mapping[str, Any]] = (), proxies: str | None = None
) -> dict[str, Any]:
    """Ray Serve's configuration of all services: what is not in it is drained and ended.

    Args:
        services: Ours, all of them.
        others: Applications of others on the cluster, as their configurations are there; they stay as they are.
        proxies: Where they have Ray Serve's proxies. Ours need none: bytes go from gateways to replicas.
    """
    ours = [_application(service) for service in services if service.num_replicas]
    return {"proxy_location": proxies or _NO_PROXY, "applications": [*others, *ours]}


def _application(service: DeployedService) -> dict[str, Any]:
    replicas = service.replicas
    deployment = {
        "name": DEPLOYMENT,
        "num_replicas": service.num_replicas,
        "ray_actor_options": actor_options(service.spec.placement),
        "health_check_period_s": _HEALTH_PERIOD_S,
        "health_check_timeout_s": _HEALTH_TIMEOUT_S,
        "graceful_shutdown_timeout_s": replicas.drain_s + _STOP_MARGIN_S,
        "graceful_shutdown_wait_loop_s": 0.1,
    }
    return {
        "name": service.application,
        "route_prefix": None,
        "import_path": IMPORT_PATH,
        "args": replicas.model_dump(mode="json"),
        "deployments": [deployment],
    }


def actor_options(placement: PlacementSpec) -> dict[str, Any]:
    """Ray's options for a replica that runs on machines with these labels, or where none is free, with the fallbacks'."""
    options: dict[str, Any] = {"num_cpus": 0, "num_gpus": placement.num_gpus}
    first, *others = [_selector(placement, labels) for labels in (placement.labels, *placement.fallbacks)]
    if first:
        options["label_selector"] = first
    if others:
        options["fallback_strategy"] = [{"label_selector": selector} for selector in others]
    return options


def _selector(placement: PlacementSpec, labels: Mapping[str, str]) -> dict[str, str]:
    selector = dict(labels)
    if placement.regions and REGION_LABEL not in selector:
        selector[REGION_LABEL] = f"in({','.join(placement.regions)})"
    return selector
