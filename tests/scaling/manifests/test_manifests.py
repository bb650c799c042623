"""Manifests: valid by the schemas of what runs them, and their configurations by our own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest
import yaml

from sixfold.core.cli import main
from sixfold.core.config import load_config
from sixfold.core.errors import ConfigError
from sixfold.scaling.gateway.config_file import load_gateway_config
from sixfold.scaling.hub.etcd_client import EtcdSettings
from sixfold.scaling.manifests import command, kuberay
from sixfold.scaling.manifests.kinds import KINDS, render
from sixfold.scaling.manifests.objects import KEY_SHA256_VARIABLE, KEY_VARIABLE, Manifest, Target, name_of
from sixfold.scaling.registry_settings import RegistryPlace
from sixfold.scaling.up.settings import load_site
from tests.scaling.manifests.schemas import CUSTOM, INFERENCE_SERVICE_ONLY

KUBERNETES = "1.34"
MODELS: dict[str, Any] = {
    "chat/Large": {"source": "hf:org/chat", "parallel": {"context": 2}},
    "notes": {"source": "hf:org/notes", "device": "cpu", "objective": {"p95_ttft_s": 0.5}},
}
SERVICES: dict[str, Any] = {
    "chat/Large": {
        "scaling": {"min_replicas": 2, "max_replicas": 3, "concurrency_target": 10},
        "placement": {"num_gpus": 2, "labels": {"accelerator": "h100", "region": "eu"}},
        "rollout": {"kind": "canary"},
    }
}
KEYS = [{"name": "ward", "sha256": "0" * 64}]


@pytest.fixture(autouse=True)
def some_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests name the version of Ray that is installed, which need not be."""
    monkeypatch.setattr(kuberay, "ray_version", lambda: "2.56.0")


def target(tmp_path: Path, *, services: Any = SERVICES, models: Any = MODELS, **server: Any) -> Target:
    path = tmp_path / "config.yaml"
    cluster = {"services": services, "registry": "etcd://etcd.default.svc:2379"}
    path.write_text(yaml.safe_dump({"models": models, "server": server, "cluster": cluster}))
    return Target(site=load_site(path, environ={}), image="registry.example/sixfold:1", namespace="ward")


def objects(kind: str, found: Target) -> list[Manifest]:
    return list(yaml.safe_load_all(render(kind, found)))


def named(found: list[Manifest], kind: str, name: str) -> Manifest:
    (one,) = [each for each in found if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return one


def pod_templates(value: object) -> Iterator[Manifest]:
    if isinstance(value, dict):
        mapping = cast(Manifest, value)
        if "containers" in mapping:
            yield {key: part for key, part in mapping.items() if key not in INFERENCE_SERVICE_ONLY}
        for part in mapping.values():
            yield from pod_templates(part)
    elif isinstance(value, list):
        for part in cast(list[object], value):
            yield from pod_templates(part)


def test_the_commands_kinds_are_those_that_there_are() -> None:
    assert list(command.KINDS) == sorted(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_object_is_valid_by_the_schema_of_what_runs_it(tmp_path: Path, kind: str) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="a development package that 'make test' installs")
    server = {} if kind in ("kserve", "kuberay") else {"api_keys": KEYS}
    for each in objects(kind, target(tmp_path, **server)):
        if each["kind"] in CUSTOM:
            jsonschema.validate(each, CUSTOM[each["kind"]])
        else:
            kubernetes.validate(each, KUBERNETES, strict=True)
        for spec in pod_templates(each):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
            kubernetes.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [*((kind, []) for kind in sorted(set(KINDS) - {"kuberay"})), ("deployment", KEYS), ("leaderworkerset", KEYS)],
)
def test_servers_and_gateway_take_their_configurations(tmp_path: Path, kind: str, keys: Any) -> None:
    found = target(tmp_path, api_keys=keys, drain_timeout_s=7)
    environ = {KEY_SHA256_VARIABLE: "a" * 64, KEY_VARIABLE: "secret"} if keys else {}
    path = tmp_path / "mounted.yaml"
    for each in objects(kind, found):
        if each["kind"] != "ConfigMap":
            continue
        path.write_text(each["data"]["config.yaml"])
        if each["metadata"]["name"] == "sixfold-gateway":
            gateway = load_gateway_config(path, environ=environ)
            assert gateway.replica_key == ("secret" if keys else None)
            assert (gateway.server.host, len(gateway.server.api_keys)) == ("0.0.0.0", len(keys))
            assert len(gateway.replicas) == 3 + 1
        else:
            settings = load_config(path, environ=environ)
            (name,) = settings.models
            assert settings.models[name] == found.site.settings.models[name]
            assert (settings.server.host, settings.server.port, settings.server.drain_timeout_s) == (
                "0.0.0.0",
                8000,
                7.0,
            )
            assert [key.sha256 for key in settings.server.api_keys] == (["a" * 64] if keys else [])


def test_the_gateway_knows_every_server_that_there_may_be_by_its_own_address(tmp_path: Path) -> None:
    found = objects("deployment", target(tmp_path))
    config = yaml.safe_load(named(found, "ConfigMap", "sixfold-gateway")["data"]["config.yaml"])
    assert config["replicas"] == [
        *(f"http://sixfold-chat-large-{index}.sixfold-chat-large.ward.svc:8000" for index in range(3)),
        "http://sixfold-notes-0.sixfold-notes.ward.svc:8000",
    ]
    server = named(found, "StatefulSet", "sixfold-chat-large")["spec"]
    assert (server["replicas"], server["serviceName"]) == (2, "sixfold-chat-large")
    assert named(found, "Service", "sixfold-chat-large")["spec"]["clusterIP"] == "None"


def test_a_pod_gets_its_gpus_its_nodes_and_time_to_drain(tmp_path: Path) -> None:
    found = objects("deployment", target(tmp_path, drain_timeout_s=100))
    pod = named(found, "StatefulSet", "sixfold-chat-large")["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 2}}
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert {each["key"]: each["values"] for each in term["matchExpressions"]} == {
        "accelerator": ["h100"],
        "topology.kubernetes.io/region": ["eu"],
    }
    assert pod["terminationGracePeriodSeconds"] > 100
    other = named(found, "StatefulSet", "sixfold-notes")["spec"]["template"]["spec"]
    assert "resources" not in other["containers"][0]


def test_fallbacks_are_further_nodes_within_the_regions(tmp_path: Path) -> None:
    placement = {"labels": {"accelerator": "h100"}, "fallbacks": [{"accelerator": "a100"}], "regions": ["eu"]}
    found = objects("deployment", target(tmp_path, services={"notes": {"placement": placement}}))
    where = named(found, "StatefulSet", "sixfold-notes")["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    terms = where["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [{each["key"] for each in term["matchExpressions"]} for term in terms] == [
        {"accelerator", "topology.kubernetes.io/region"}
    ] * 2
    assert len(where["preferredDuringSchedulingIgnoredDuringExecution"]) == 2


def test_ray_serve_takes_the_document_of_a_ray_service(tmp_path: Path) -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="the extra 'ray' is not installed")
    spec = named(objects("kuberay", target(tmp_path)), "RayService", "sixfold")["spec"]
    document = schema.ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    assert {each.name: each.deployments[0].num_replicas for each in document.applications} == {
        "chat/Large": 2,
        "notes": 1,
    }
    groups = {each["groupName"]: each for each in spec["rayClusterConfig"]["workerGroupSpecs"]}
    assert groups["chat-large"]["rayStartParams"] == {"num-gpus": "2", "labels": "accelerator=h100,region=eu"}
    assert spec["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_no_manifest_holds_a_key(tmp_path: Path) -> None:
    text = render("deployment", target(tmp_path, api_keys=KEYS))
    assert set(re.findall(r"\$\{(\w+)\}", text)) == {KEY_VARIABLE, KEY_SHA256_VARIABLE}
    assert "secretKeyRef" in text


@pytest.mark.parametrize(
    ("kind", "parts", "complaint"),
    [
        ("deployment", {"services": {"notes": {"placement": {"num_gpus": 0.5}}}}, "whole GPUs, not 0.5"),
        ("deployment", {"models": {"a/b": MODELS["notes"], "a-b": MODELS["notes"]}, "services": {}}, "named sixfold-a-b"),
        ("deployment", {"models": {"gateway": MODELS["notes"]}, "services": {}}, "as those of the gateway"),
        ("kserve", {"api_keys": KEYS}, "no gateway of Sixfold"),
        ("kuberay", {"api_keys": KEYS}, "in plain text"),
        ("kuberay", {"services": {"notes": {"placement": {"regions": ["eu"]}}}}, r"labels: \{region: eu\}"),
    ],
)  # fmt: skip
def test_what_a_kind_cannot_say_is_refused_with_what_to_do(
    tmp_path: Path, kind: str, parts: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        render(kind, target(tmp_path, **parts))


def test_a_ray_service_needs_a_registry_over_machines(tmp_path: Path) -> None:
    found = target(tmp_path)
    site = load_site(tmp_path / "config.yaml", environ={})
    alone = site.cluster.model_copy(update={"registry": None})
    with pytest.raises(ConfigError, match="Set it to etcd://HOST:PORT"):
        render("kuberay", Target(site=type(site)(settings=site.settings, cluster=alone), image=found.image))
    etcd = EtcdSettings(endpoints=("https://a:1",), user="u", password="p")
    guarded = site.cluster.model_copy(update={"registry": RegistryPlace(etcd=etcd)})
    with pytest.raises(ConfigError, match="hold no user"):
        render("kuberay", Target(site=type(site)(settings=site.settings, cluster=guarded), image=found.image))


def test_the_command_prints_them_and_names_files_that_the_image_must_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("models: {chat: {source: 'file:/models/chat'}}")
    assert main(["manifests", str(path), "--image", "sixfold:1", "--namespace", "ward"]) == 0
    printed = capsys.readouterr()
    assert {each["metadata"]["namespace"] for each in yaml.safe_load_all(printed.out)} == {"ward"}
    assert "file:/models/chat must be in the image" in printed.err


def test_names_leave_room_for_what_kubernetes_adds() -> None:
    name = name_of("meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8-dynamic-and-more")
    assert len(name) + len("-") + len("5f8b7c9d4d") <= 63
