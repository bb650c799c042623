"""The gateway as objects of Kubernetes: two pods behind one address, over all servers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sixfold.scaling.manifests.objects import (
    CONFIG_FILE,
    KEY_VARIABLE,
    Manifest,
    Target,
    config_map,
    labels,
    manifest,
    pod_template,
    probe,
    secret_variable,
)
from sixfold.scaling.registry_settings import RegistryPlace
from sixfold.scaling.up.settings import GatewayPart

GATEWAY = "sixfold-gateway"
GATEWAY_PORT = 8080
_NUM_GATEWAYS = 2
_STOP_MARGIN_S = 15


def gateway_objects(
    target: Target, *, servers: Sequence[str] = (), registry: RegistryPlace | None = None
) -> list[Manifest]:
    """All that the gateway is made of.

    Args:
        target: Where it is for.
        servers: Addresses, also of servers that may not be there yet: those that don't answer get nothing.
        registry: In place of addresses, the etcd in which servers publish themselves.
    """
    drain_s = math.ceil(target.site.settings.server.drain_timeout_s) + _STOP_MARGIN_S
    container: Manifest = {
        "name": "gateway",
        "image": target.image,
        "command": ["sixfold", "gateway", CONFIG_FILE],
        "ports": [{"name": "http", "containerPort": GATEWAY_PORT}],
        # Not /ready, which is about the servers: a gateway without any holds requests until one comes.
        "readinessProbe": probe("/health", failures=2),
        "livenessProbe": probe("/health", failures=6),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/sixfold"}],
    }
    if target.has_keys:
        container["env"] = [secret_variable(KEY_VARIABLE, "key")]
    pod = {
        "terminationGracePeriodSeconds": drain_s,
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": GATEWAY}}],
    }
    selector = {"matchLabels": labels(GATEWAY)}
    deployment = {"replicas": _NUM_GATEWAYS, "selector": selector, "template": pod_template(GATEWAY, pod)}
    ports = [{"name": "http", "port": 80, "targetPort": "http"}]
    # What a gateway has learnt of prefixes and sessions another does not know.
    service = {"selector": labels(GATEWAY), "ports": ports, "sessionAffinity": "ClientIP"}
    return [
        config_map(GATEWAY, target, gateway_config(target, servers=servers, registry=registry)),
        manifest("apps/v1", "Deployment", GATEWAY, target, spec=deployment),
        manifest("v1", "Service", GATEWAY, target, spec=service),
        manifest("policy/v1", "PodDisruptionBudget", GATEWAY, target, spec={"minAvailable": 1, "selector": selector}),
    ]


def gateway_config(target: Target, *, servers: Sequence[str], registry: RegistryPlace | None) -> str:
    """The gateway's configuration file."""
    part = target.site.gateway(registry or RegistryPlace(path=Path("unused")), replica_key=None)
    server = target.site.settings.server.model_dump(mode="json", exclude_defaults=True, exclude={"host", "port"})
    document: dict[str, Any] = {
        name: dumped
        for name in GatewayPart.model_fields
        if (dumped := part.model_dump(mode="json", exclude_defaults=True).get(name)) is not None
    }
    document["server"] = {**server, "host": "0.0.0.0", "port": GATEWAY_PORT}
    if registry is not None:
        document["registry"] = {
            **registry.model_dump(mode="json", exclude_defaults=True),
            "ttl_s": target.site.cluster.lease_s,
        }
    else:
        document["replicas"] = list(servers)
    text = json.dumps(document).replace("${", "$${")
    if target.has_keys:
        # After the rest was kept from being filled in: this one shall be.
        text = f'{text[:-1]}, "replica_key": "${{{KEY_VARIABLE}}}"}}'
    return text
