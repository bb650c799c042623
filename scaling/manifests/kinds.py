"""The kinds of manifests: plain Kubernetes, and the objects of projects that run servers on it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import yaml

from sixfold.core.errors import ConfigError
from sixfold.scaling.manifests.gateway import GATEWAY, gateway_objects
from sixfold.scaling.manifests.kuberay import kuberay
from sixfold.scaling.manifests.objects import (
    CACHE_FOLDER,
    KEY_SHA256_VARIABLE,
    PORT,
    Manifest,
    Target,
    config_map,
    labels,
    manifest,
    names_of,
    pod_template,
    server_pod,
)
from sixfold.scaling.up.services import replica_config


def plain(target: Target) -> list[Manifest]:
    """StatefulSets of servers, each with an address of its own that the gateway routes to, and the gateway."""
    found: list[Manifest] = []
    addresses: list[str] = []
    for model, name in names_of(target).items():
        scaling = target.site.part(model).scaling
        spec = {
            "serviceName": name,
            "replicas": max(1, scaling.min_replicas),
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": labels(name)},
            "template": pod_template(name, server_pod(name, model, target)),
        }
        found += [
            _config(name, model, target),
            _headless(name, target),
            manifest("apps/v1", "StatefulSet", name, target, spec=spec),
        ]
        addresses += _addresses(name, scaling.max_replicas, target)
    return [*found, *gateway_objects(target, servers=addresses)]


def gateway_api(target: Target) -> list[Manifest]:
    """As `plain`, with a route of the Gateway API to Sixfold's gateway."""
    parent = manifest(
        "gateway.networking.k8s.io/v1",
        "Gateway",
        "sixfold",
        target,
        spec={
            "gatewayClassName": "CLASS",
            "listeners": [
                {"name": "http", "protocol": "HTTP", "port": 80, "allowedRoutes": {"namespaces": {"from": "Same"}}}
            ],
        },
    )
    rule = {
        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "backendRefs": [{"name": GATEWAY, "port": 80}],
        # Streams last as long as they last: deadlines are kept by the gateway behind it.
        "timeouts": {"request": "0s"},
    }
    route = manifest(
        "gateway.networking.k8s.io/v1",
        "HTTPRoute",
        "sixfold",
        target,
        spec={"parentRefs": [{"name": "sixfold"}], "rules": [rule]},
    )
    return [*plain(target), parent, route]


def leader_worker_set(target: Target) -> list[Manifest]:
    """As `plain`, with a LeaderWorkerSet in place of each StatefulSet: all ranks of a server are processes of one pod, so
    that a group is its leader alone."""
    found: list[Manifest] = []
    addresses: list[str] = []
    for model, name in names_of(target).items():
        scaling = target.site.part(model).scaling
        spec = {
            "replicas": max(1, scaling.min_replicas),
            "networkConfig": {"subdomainPolicy": "Shared"},
            "rolloutStrategy": {
                "type": "RollingUpdate",
                "rollingUpdateConfiguration": {"maxUnavailable": 1, "maxSurge": 0},
            },
            "leaderWorkerTemplate": {
                "size": 1,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "workerTemplate": pod_template(name, server_pod(name, model, target)),
            },
        }
        found += [
            _config(name, model, target),
            manifest("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", name, target, spec=spec),
        ]
        addresses += _addresses(name, scaling.max_replicas, target)
    return [*found, *gateway_objects(target, servers=addresses)]


def kserve(target: Target) -> list[Manifest]:
    """An InferenceService a model, which KServe routes to and scales by requests in flight; without Sixfold's gateway."""
    found: list[Manifest] = []
    for model, name in names_of(target).items():
        part = target.site.part(model)
        if target.has_keys:
            raise ConfigError(
                "server.api_keys: on a KServe route no gateway of Sixfold checks keys. Leave them out, or choose another kind."
            )
        scaling = part.scaling
        predictor = {
            **server_pod(name, model, target, container="kserve-container"),
            "minReplicas": scaling.min_replicas,
            "maxReplicas": scaling.max_replicas,
            "scaleMetric": "concurrency",
            "scaleTarget": max(1, round(scaling.concurrency_target * scaling.target_utilization)),
            "timeout": math.ceil(target.site.settings.server.request_timeout_s or 3600.0),
        }
        if part.rollout.kind == "canary":
            predictor["canaryTrafficPercent"] = max(1, round(100 * part.rollout.shares[0]))
        found += [
            _config(name, model, target),
            manifest("serving.kserve.io/v1beta1", "InferenceService", name, target, spec={"predictor": predictor}),
        ]
    return found


KINDS: Mapping[str, Callable[[Target], list[Manifest]]] = MappingProxyType(
    {
        "deployment": plain,
        "gateway-api": gateway_api,
        "kserve": kserve,
        "kuberay": kuberay,
        "leaderworkerset": leader_worker_set,
    }
)


def render(kind: str, target: Target) -> str:
    """The manifests as one YAML text.

    Raises:
        ConfigError: The configuration can't be said in this kind.
    """
    for model in target.site.settings.models:
        if target.site.part(model).roles is not None:
            raise ConfigError(
                f"cluster.services.{model}.roles: what sizes both roles is the agent of 'sixfold up', and Kubernetes has none. "
                "Remove roles, or run 'sixfold up'."
            )
    return yaml.safe_dump_all(KINDS[kind](target), sort_keys=False, width=120)


def _config(name: str, model: str, target: Target) -> Manifest:
    text = replica_config(
        *(target.site, model),
        key_sha256=f"${{{KEY_SHA256_VARIABLE}}}" if target.has_keys else None,
        host="0.0.0.0",
        port=PORT,
        cache_dir=CACHE_FOLDER,
    )
    return config_map(name, target, json.dumps(json.loads(text), indent=1))


def _headless(name: str, target: Target) -> Manifest:
    spec = {
        "clusterIP": "None",
        "selector": labels(name),
        "ports": [{"name": "http", "port": PORT}],
        # The gateway asks each server itself whether it is ready, and must find one that drains.
        "publishNotReadyAddresses": True,
    }
    return manifest("v1", "Service", name, target, spec=spec)


def _addresses(name: str, count: int, target: Target) -> list[str]:
    return [f"http://{name}-{index}.{name}.{target.namespace}.svc:{PORT}" for index in range(count)]
