"""Schemas of the custom objects, written for these tests from the projects' public API descriptions.

They name the fields that the manifests use, and refuse all others: what is not here would have to be looked up first. Pods in
them are checked by Kubernetes' own schemas.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_TEXTS: Schema = {"type": "object", "additionalProperties": _TEXT}
_POD: Schema = {"type": "object", "required": ["spec"]}


def _exactly(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    properties = {**required, **(optional or {})}
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


def _object(api_version: str, kind: str, spec: Schema) -> Schema:
    metadata = _exactly({"name": _TEXT, "namespace": _TEXT}, {"labels": _TEXTS})
    return _exactly({"apiVersion": {"const": api_version}, "kind": {"const": kind}, "metadata": metadata, "spec": spec})


_GROUP = _exactly(
    {
        "groupName": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
        "minReplicas": _COUNT,
        "maxReplicas": _COUNT,
        "rayStartParams": _TEXTS,
        "template": _POD,
    },
    {"replicas": _COUNT, "numOfHosts": _COUNT},
)
RAY_SERVICE = _object(
    "ray.io/v1",
    "RayService",
    _exactly(
        {
            "serveConfigV2": _TEXT,
            "rayClusterConfig": _exactly(
                {"headGroupSpec": _exactly({"rayStartParams": _TEXTS, "template": _POD})},
                {"rayVersion": _TEXT, "workerGroupSpecs": {"type": "array", "items": _GROUP}},
            ),
        }
    ),
)
"""Source: KubeRay, API reference ray.io/v1: RayServiceSpec, RayClusterSpec, HeadGroupSpec, WorkerGroupSpec."""

LEADER_WORKER_SET = _object(
    "leaderworkerset.x-k8s.io/v1",
    "LeaderWorkerSet",
    _exactly(
        {
            "leaderWorkerTemplate": _exactly(
                {"workerTemplate": _POD},
                {
                    "leaderTemplate": _POD,
                    "size": {"type": "integer", "minimum": 1},
                    "restartPolicy": {"enum": ["RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"]},
                },
            )
        },
        {
            "replicas": _COUNT,
            "networkConfig": _exactly({"subdomainPolicy": {"enum": ["Shared", "UniquePerReplica"]}}),
            "startupPolicy": {"enum": ["LeaderCreated", "LeaderReady"]},
            "rolloutStrategy": _exactly(
                {"type": {"enum": ["RollingUpdate"]}},
                {
                    "rollingUpdateConfiguration": _exactly(
                        {}, {"maxUnavailable": _COUNT, "maxSurge": _COUNT, "partition": _COUNT}
                    )
                },
            ),
        },
    ),
)
"""Source: LeaderWorkerSet, API reference leaderworkerset.x-k8s.io/v1."""

INFERENCE_SERVICE = _object(
    "serving.kserve.io/v1beta1",
    "InferenceService",
    _exactly(
        {
            "predictor": {
                "type": "object",
                "required": ["containers"],
                "properties": {
                    "minReplicas": _COUNT,
                    "maxReplicas": _COUNT,
                    "scaleTarget": {"type": "integer", "minimum": 1},
                    "scaleMetric": {"enum": ["cpu", "memory", "concurrency", "rps"]},
                    "timeout": {"type": "integer", "minimum": 1},
                    "canaryTrafficPercent": {"type": "integer", "minimum": 0, "maximum": 100},
                },
            }
        }
    ),
)
"""Source: KServe, API reference serving.kserve.io/v1beta1: ComponentExtensionSpec; its other fields are those of a pod."""

INFERENCE_SERVICE_ONLY = ("minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "timeout", "canaryTrafficPercent")

GATEWAY = _object(
    "gateway.networking.k8s.io/v1",
    "Gateway",
    _exactly(
        {
            "gatewayClassName": _TEXT,
            "listeners": {
                "type": "array",
                "minItems": 1,
                "items": _exactly(
                    {"name": _TEXT, "port": {"type": "integer", "minimum": 1, "maximum": 65535}, "protocol": _TEXT},
                    {
                        "allowedRoutes": _exactly(
                            {"namespaces": _exactly({"from": {"enum": ["All", "Selector", "Same"]}})}
                        )
                    },
                ),
            },
        }
    ),
)
HTTP_ROUTE = _object(
    "gateway.networking.k8s.io/v1",
    "HTTPRoute",
    _exactly(
        {
            "parentRefs": {"type": "array", "items": _exactly({"name": _TEXT})},
            "rules": {
                "type": "array",
                "minItems": 1,
                "maxItems": 16,
                "items": _exactly(
                    {"backendRefs": {"type": "array", "items": _exactly({"name": _TEXT, "port": _COUNT})}},
                    {
                        "matches": {
                            "type": "array",
                            "items": _exactly(
                                {"path": _exactly({"type": {"enum": ["Exact", "PathPrefix"]}, "value": _TEXT})}
                            ),
                        },
                        "timeouts": _exactly(
                            {"request": {"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}}
                        ),
                    },
                ),
            },
        }
    ),
)
"""Source: Gateway API, reference gateway.networking.k8s.io/v1: Gateway, HTTPRoute; durations: GEP-2257."""

CUSTOM: dict[str, Schema] = {
    "RayService": RAY_SERVICE,
    "LeaderWorkerSet": LEADER_WORKER_SET,
    "InferenceService": INFERENCE_SERVICE,
    "Gateway": GATEWAY,
    "HTTPRoute": HTTP_ROUTE,
}
