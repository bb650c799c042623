"""The objects of Kubernetes that every kind of deployment is made of: names, configurations, pods."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sixfold.core.errors import ConfigError
from sixfold.scaling.spec import PlacementSpec
from sixfold.scaling.up.settings import Site

Manifest = dict[str, Any]

PORT = 8000
"""On which servers listen in their pods."""

CONFIG_FILE = "/etc/sixfold/config.yaml"
CACHE_FOLDER = "/var/cache/sixfold"
SECRET = "sixfold-replica-key"
"""Name of the secret with the key that servers demand: ``key`` and its ``sha256``."""

KEY_VARIABLE = "SIXFOLD_REPLICA_KEY"
KEY_SHA256_VARIABLE = "SIXFOLD_REPLICA_KEY_SHA256"

_NODE_LABELS = {"region": "topology.kubernetes.io/region", "zone": "topology.kubernetes.io/zone"}
_PROBE_S = 5
_STOP_MARGIN_S = 15
_PREFIX = "sixfold-"
_MAX_NAME = 52  # the hash and ordinal that Kubernetes adds must fit into 63 characters, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where manifests are for.

    Attributes:
        site: The configuration.
        image: Of the containers, with Sixfold and the extras that the models need.
        namespace: Of all objects.
        cache_claim: Name of a PersistentVolumeClaim for model files that all servers share; None: each pod fetches its own.
    """

    site: Site
    image: str
    namespace: str = "default"
    cache_claim: str | None = None

    @property
    def has_keys(self) -> bool:
        """Whether clients need keys, and servers one of the gateway."""
        return bool(self.site.settings.server.api_keys)


def name_of(model: str) -> str:
    """The name of a model's objects.

    Raises:
        ConfigError: Nothing is left of it.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower())[: _MAX_NAME - len(_PREFIX)].strip("-")
    if not slug:
        raise ConfigError(
            f"models.{model}: no name for Kubernetes can be made of {model!r}. Rename it, and keep the old name as an alias."
        )
    return f"{_PREFIX}{slug}"


def names_of(target: Target) -> Mapping[str, str]:
    """The names of all models' objects, by model.

    Raises:
        ConfigError: Two models would have the same.
    """
    names: dict[str, str] = {}
    for model in target.site.settings.models:
        name = name_of(model)
        other = next((each for each, taken in names.items() if taken == name), None)
        if other is not None or name == "sixfold-gateway":
            raise ConfigError(
                f"models.{model}: its objects would be named {name}, as those of {other or 'the gateway'}. Rename it."
            )
        names[model] = name
    return names


def manifest(api_version: str, kind: str, name: str, target: Target, **parts: Any) -> Manifest:
    """One object."""
    metadata = {"name": name, "namespace": target.namespace, "labels": labels(name)}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **parts}


def labels(name: str) -> dict[str, str]:
    """By which the objects and pods of a name are found."""
    return {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "sixfold"}


def config_map(name: str, target: Target, text: str) -> Manifest:
    """A configuration file as an object."""
    return manifest("v1", "ConfigMap", name, target, data={"config.yaml": text})


def server_pod(name: str, model: str, target: Target, *, container: str = "server") -> Manifest:
    """The pod of one server, without what says how many there are.

    Args:
        name: Of its configuration's object.
        model: Which it serves.
        target: Where it is for.
        container: Name of its container.

    Raises:
        ConfigError: Its placement can't be said in Kubernetes.
    """
    spec = target.site.service(model, has_gpus=True)
    num_gpus = spec.placement.num_gpus
    if num_gpus != int(num_gpus):
        raise ConfigError(
            f"cluster.services.{model}.placement.num_gpus: Kubernetes gives whole GPUs, not {num_gpus:g}."
        )
    volumes: list[Manifest] = [
        {"name": "config", "configMap": {"name": name}},
        {"name": "cache", "persistentVolumeClaim": {"claimName": target.cache_claim}}
        if target.cache_claim
        else {"name": "cache", "emptyDir": {}},
        # Workers and ranks pass tensors through shared memory, for which containers have 64 MiB unless told otherwise.
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    server: Manifest = {
        "name": container,
        "image": target.image,
        "command": ["sixfold", "serve", CONFIG_FILE],
        "ports": [{"name": "http", "containerPort": PORT}],
        "startupProbe": probe("/ready", failures=math.ceil(target.site.cluster.start_timeout_s / _PROBE_S)),
        "readinessProbe": probe("/ready", failures=2),
        "livenessProbe": probe("/health", failures=6),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/sixfold"},
            {"name": "cache", "mountPath": CACHE_FOLDER},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    if num_gpus:
        server["resources"] = {"limits": {"nvidia.com/gpu": int(num_gpus)}}
    if target.has_keys:
        server["env"] = [secret_variable(KEY_SHA256_VARIABLE, "sha256")]
    pod: Manifest = {
        "terminationGracePeriodSeconds": math.ceil(target.site.settings.server.drain_timeout_s) + _STOP_MARGIN_S,
        "containers": [server],
        "volumes": volumes,
    }
    if where := node_affinity(spec.placement):
        pod["affinity"] = {"nodeAffinity": where}
    return pod


def pod_template(name: str, spec: Manifest) -> Manifest:
    """A pod as others make them of it."""
    return {"metadata": {"labels": labels(name)}, "spec": spec}


def probe(path: str, *, failures: int, port: int | str = "http") -> Manifest:
    """Asks a path of the server."""
    return {"httpGet": {"path": path, "port": port}, "periodSeconds": _PROBE_S, "failureThreshold": failures}


def secret_variable(name: str, key: str) -> Manifest:
    """A variable out of the secret."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": SECRET, "key": key}}}


def node_affinity(placement: PlacementSpec) -> Manifest:
    """Nodes with the labels, rather those of the first ones, and in the regions; empty for any node."""
    choices = (placement.labels, *placement.fallbacks)
    terms = [found for each in choices if (found := _expressions(each, placement))]
    if not terms or (len(terms) < len(choices) and not placement.regions):
        return {}
    where: Manifest = {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": each} for each in terms]
        }
    }
    if len(terms) > 1:
        where["preferredDuringSchedulingIgnoredDuringExecution"] = [
            {"weight": max(1, 100 - 10 * rank), "preference": {"matchExpressions": each}}
            for rank, each in enumerate(terms)
        ]
    return where


def _expressions(wanted: Mapping[str, str], placement: PlacementSpec) -> list[Manifest]:
    found = [
        {"key": _NODE_LABELS.get(label, label), "operator": "In", "values": [value]} for label, value in wanted.items()
    ]
    if placement.regions and "region" not in wanted:
        found.append({"key": _NODE_LABELS["region"], "operator": "In", "values": list(placement.regions)})
    return found
