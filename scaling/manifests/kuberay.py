"""A RayService for KubeRay: the same document that ``sixfold up`` sends, on a Ray cluster that the operator keeps."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace

import yaml

from sixfold.core.errors import ConfigError
from sixfold.scaling.cluster.document import DeployedService, serve_document
from sixfold.scaling.manifests.gateway import gateway_objects
from sixfold.scaling.manifests.objects import (
    CACHE_FOLDER,
    Manifest,
    Target,
    manifest,
    names_of,
    pod_template,
    server_pod,
)
from sixfold.scaling.spec import PlacementSpec
from sixfold.scaling.up.services import deployed

_HEAD_PORTS = ((6379, "gcs"), (8265, "dashboard"))
_RECONNECT_S = 3600
"""Ray's nodes, and every replica with them, give themselves up when the head is gone for so long; Ray's own minute is short."""


def kuberay(target: Target) -> list[Manifest]:
    """A RayService with a worker group a model, and the gateway.

    Raises:
        ConfigError: There is no registry over machines.
    """
    registry = target.site.cluster.registry
    if registry is None or registry.etcd is None:
        raise ConfigError(
            "cluster.registry: pods of a RayService find their gateway by etcd alone. Set it to etcd://HOST:PORT."
        )
    if registry.etcd.user or registry.etcd.tls_ca or registry.etcd.tls_cert:
        raise ConfigError(
            "cluster.registry: the pods of this manifest hold no user, password or certificate of etcd. Write etcd://HOST:PORT, "
            "and let only these pods reach it (a NetworkPolicy)."
        )
    if target.has_keys:
        raise ConfigError(
            "server.api_keys: the document of a RayService would hold the replicas' key in plain text. Leave them out and let "
            "only the gateway's pods reach the replicas (a NetworkPolicy), or choose another kind."
        )
    services: list[DeployedService] = []
    groups: list[Manifest] = []
    for model, name in names_of(target).items():
        scaling = target.site.part(model).scaling
        service = deployed(
            *(target.site, model), registry=registry, replica_key=None, has_gpus=True, cache_dir=CACHE_FOLDER
        )
        services.append(replace(service, num_replicas=max(1, scaling.min_replicas)))
        groups.append(_worker_group(name, model, target))
    cluster: Manifest = {
        "rayVersion": ray_version(),
        "headGroupSpec": {
            # No replica runs on the head: it may be lost and come back while they go on.
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},
            "template": pod_template("sixfold-ray-head", _head(target)),
        },
        "workerGroupSpecs": groups,
    }
    document = yaml.safe_dump(serve_document(services), sort_keys=False)
    ray = manifest(
        "ray.io/v1", "RayService", "sixfold", target, spec={"serveConfigV2": document, "rayClusterConfig": cluster}
    )
    return [ray, *gateway_objects(target, registry=registry)]


def _worker_group(name: str, model: str, target: Target) -> Manifest:
    scaling = target.site.part(model).scaling
    placement = target.site.service(model, has_gpus=True).placement
    pod = server_pod(name, model, target, container="ray-worker")
    (container,) = pod["containers"]
    for server_only in ("command", "ports", "startupProbe", "readinessProbe", "livenessProbe"):
        del container[server_only]
    container["env"] = [_reconnect()]
    container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] != "config"]
    pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] != "config"]
    _check(model, placement)
    start = {"num-gpus": f"{placement.num_gpus:g}"}
    if placement.labels:
        start["labels"] = ",".join(f"{label}={value}" for label, value in placement.labels.items())
    return {
        "groupName": name.removeprefix("sixfold-"),
        "replicas": max(1, scaling.min_replicas),
        "minReplicas": max(1, scaling.min_replicas),
        "maxReplicas": scaling.max_replicas,
        "rayStartParams": start,
        "template": pod_template(name, pod),
    }


def _check(model: str, placement: PlacementSpec) -> None:
    """One worker group has one set of labels, so that is what a service may ask for."""
    where = f"cluster.services.{model}.placement"
    if placement.fallbacks:
        raise ConfigError(
            f"{where}.fallbacks: a RayService has a worker group a model, with one set of labels. Remove them."
        )
    if placement.regions and "region" not in placement.labels:
        raise ConfigError(
            f"{where}.regions: name the group's region under labels, such as labels: {{region: {placement.regions[0]}}}."
        )


def _head(target: Target) -> Manifest:
    return {
        "containers": [
            {
                "name": "ray-head",
                "image": target.image,
                "env": [_reconnect()],
                "ports": [{"containerPort": port, "name": name} for port, name in _HEAD_PORTS],
                "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "4Gi"}},
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ]
    }


def _reconnect() -> Manifest:
    return {"name": "RAY_gcs_rpc_server_reconnect_timeout_s", "value": str(_RECONNECT_S)}


def ray_version() -> str:
    """Of the Ray beside us, which the image should have, too.

    Raises:
        ConfigError: There is none.
    """
    try:
        return importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            "--kind kuberay names the version of Ray that is installed here: pip install 'sixfold[ray]'."
        ) from None
