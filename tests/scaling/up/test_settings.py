"""The ``cluster`` part of a configuration file, and what each replica's server is told of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sixfold.core.config import load_config
from sixfold.core.errors import ConfigError
from sixfold.core.messages import Priority
from sixfold.core.serving.keys import KeyRing
from sixfold.core.serving.settings import hash_key
from sixfold.scaling.cluster.replica import NODE_IP, ReplicaSettings
from sixfold.scaling.registry_settings import place_of
from sixfold.scaling.up.services import deployed, replica_config
from sixfold.scaling.up.settings import Site, load_site

MODELS: dict[str, Any] = {
    "chat": {"source": "file:chat", "objective": {"p95_ttft_s": 0.5}},
    "embed": {"source": "file:e"},
}
ENVIRON = {"SIXFOLD_CACHE_DIR": "/cache"}
ROLES: dict[str, Any] = {"max_replicas": 6, "ttft_s": 1.0, "inter_token_s": 0.05}
DISAGGREGATION = {"prefill_tokens_per_s": 1000, "kv_bytes_per_token": 1000}


def roles_of(part: dict[str, Any], *, models: dict[str, Any] = MODELS, **cluster: Any) -> dict[str, Any]:
    """A file whose model ``chat`` has roles."""
    services = {"chat": {"roles": ROLES, **part}}
    return {
        "models": models,
        "cluster": {"services": services, "gateway": {"disaggregation": DISAGGREGATION}, **cluster},
    }


def site(tmp_path: Path, **parts: Any) -> Site:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"models": MODELS, **parts}))
    return load_site(path, environ=ENVIRON)


def test_without_a_cluster_part_each_model_has_one_replica_wherever_there_is_room(tmp_path: Path) -> None:
    found = site(tmp_path)
    service = found.service("chat", has_gpus=False)
    assert (service.scaling.min_replicas, service.scaling.max_replicas) == (1, 1)
    assert (service.placement.num_gpus, service.placement.labels) == (0.0, {})


@pytest.mark.parametrize(
    ("entry", "num_gpus"),
    [({}, 1.0), ({"device": "cpu"}, 0.0), ({"parallel": {"context": 2, "cfg": 2}}, 4.0), ({"replicas": 3}, 3.0)],
)
def test_a_model_gets_a_gpu_for_each_process_that_holds_it(
    tmp_path: Path, entry: dict[str, Any], num_gpus: float
) -> None:
    found = site(tmp_path, models={"chat": {"source": "file:chat", **entry}})
    assert found.service("chat", has_gpus=True).placement.num_gpus == num_gpus


def test_a_placement_that_was_given_holds_on_any_cluster(tmp_path: Path) -> None:
    cluster = {"services": {"chat": {"placement": {"num_gpus": 2, "labels": {"region": "eu"}}}}}
    placement = site(tmp_path, cluster=cluster).service("chat", has_gpus=False).placement
    assert (placement.num_gpus, placement.labels) == (2.0, {"region": "eu"})


def test_one_server_takes_the_same_file(tmp_path: Path) -> None:
    given = site(tmp_path, cluster={"services": {"chat": {"scaling": {"max_replicas": 3}}}})
    assert load_config(tmp_path / "config.yaml", environ=ENVIRON) == given.settings


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({"cluster": {"services": {"caht": {}}}}, r"services\.caht: there is no such model. Did you mean 'chat'"),
        ({"cluster": {"servces": {}}}, "cluster.servces: unknown key. Did you mean 'services'"),
        ({"cluster": ["chat"]}, "must be a mapping"),
        ({"cluster": {"services": {"chat": {"scaling": {"slo": {"ttft_s": 1}}}}}}, r"scaling\.slo"),
        ({"cluster": {"services": {"chat": {"scaling": {"min_replicas": 2}}}}}, "Raise max_replicas"),
        ({"cluster": {"gateway": {"replicas": ["http://a"]}}}, "cluster.gateway.replicas: unknown key"),
        (roles_of({"scaling": {"max_replicas": 3}}), "Remove one of both"),
        (roles_of({"rollout": {"kind": "canary"}}), r"rollout\.kind: with roles"),
        (roles_of({}, gateway={}), r"Set cluster\.gateway\.disaggregation"),
        (roles_of({}, registry="etcd://10.0.0.9:2379"), r"roles\.peers: replicas run on many machines"),
        (roles_of({}, models={**MODELS, "chat-prefill": {"source": "file:c"}}), "'chat-prefill', as a model is"),
        (
            roles_of({"roles": {**ROLES, "max_replicas": 2, "decode": {"min_replicas": 2}}}),
            "both roles have 3 at least",
        ),
        (roles_of({"roles": {**ROLES, "prefill": {"min_replicas": 3, "max_replicas": 2}}}), "Raise max_replicas"),
        ({"server": {"data_dir": "jobs"}}, "data_dir"),
        ({"telemetry": {"endpoint": "http://127.0.0.1:4318"}}, "send no traces yet"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, parts: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        site(tmp_path, **parts)
    assert "config.yaml:" in str(caught.value)


def test_requests_are_held_for_two_cold_starts_where_a_service_may_have_no_replica(tmp_path: Path) -> None:
    services = {"chat": {"scaling": {"min_replicas": 0, "cold_start_s": 20}}}
    registry = place_of(str(tmp_path / "replicas.db"))
    held = site(tmp_path, cluster={"services": services}).gateway(registry, replica_key=None).admission
    assert held.hold_s == 40.0
    gateway = {"admission": {"hold_s": 3}}
    given = site(tmp_path, cluster={"services": services, "gateway": gateway}).gateway(registry, replica_key=None)
    assert given.admission.hold_s == 3.0
    assert site(tmp_path).gateway(registry, replica_key=None).admission.hold_s == 0.0


def test_a_replica_serves_one_model_as_the_file_says_and_listens_on_a_free_port(tmp_path: Path) -> None:
    whole = site(tmp_path, server={"port": 9000, "host": "0.0.0.0", "drain_timeout_s": 5, "cors_origins": ["*"]})
    for name in MODELS:
        path = tmp_path / f"{name}.json"
        path.write_text(replica_config(whole, name))
        own = load_config(path, environ={})
        assert own.models == {name: whole.settings.models[name]}
        assert (own.server.host, own.server.port, own.server.drain_timeout_s) == ("127.0.0.1", 0, 5.0)
        assert (own.server.cors_origins, own.cache_dir) == ((), Path("/cache"))


def test_what_looks_like_a_variable_reaches_the_replica_as_it_is(tmp_path: Path) -> None:
    models = {"chat": {"source": "file:chat", "options": {"chat_template": "a $${b} c"}}}
    path = tmp_path / "replica.json"
    path.write_text(replica_config(site(tmp_path, models=models), "chat"))
    assert load_config(path, environ={}).models["chat"].options == {"chat_template": "a ${b} c"}


def test_replicas_take_the_gateways_key_alone_and_every_priority_from_it(tmp_path: Path) -> None:
    keys = [{"name": "ward", "sha256": "0" * 64, "models": ["chat"]}]
    whole = site(tmp_path, server={"api_keys": keys})
    path = tmp_path / "replica.json"
    path.write_text(replica_config(whole, "chat", key_sha256=hash_key("secret")))
    ring = KeyRing(load_config(path, environ={}).server.api_keys, lambda: 0.0)
    holder = ring.authenticate(b"Bearer secret")
    assert (holder.name, holder.max_priority, holder.changes_models) == ("gateway", Priority.INTERACTIVE, False)
    assert holder.acting_for(b"ward").name == "gateway/ward"
    assert "secret" not in path.read_text()


def test_a_replica_drains_longer_than_its_server(tmp_path: Path) -> None:
    whole = site(tmp_path, server={"drain_timeout_s": 7})
    service = deployed(whole, "chat", registry=place_of(str(tmp_path / "r.db")), replica_key=None, has_gpus=False)
    assert service.replicas.drain_s > 7.0


def test_replicas_listen_on_their_machines_address_where_the_registry_spans_machines(tmp_path: Path) -> None:
    whole = site(tmp_path, server={"api_keys": [{"name": "ward", "sha256": "0" * 64}]})
    path = tmp_path / "replica.json"
    for registry, host in (("etcd://10.0.0.9:2379", "10.0.0.7"), (str(tmp_path / "r.db"), "127.0.0.1")):
        service = deployed(whole, "chat", registry=place_of(registry), replica_key="secret", has_gpus=False)
        path.write_text(service.replicas.config)
        server = load_config(path, environ={NODE_IP: "10.0.0.7"}).server
        assert (server.host, [key.sha256 for key in server.api_keys]) == (host, [hash_key("secret")])


def test_a_revision_is_another_whenever_its_server_is_told_something_else(tmp_path: Path) -> None:
    def revision(**parts: Any) -> str:
        whole = site(tmp_path, **parts)
        return deployed(whole, "chat", registry=place_of("r.db"), replica_key=None, has_gpus=False).replicas.revision

    same = revision()
    more = {"services": {"chat": {"scaling": {"max_replicas": 4}}}}
    assert revision(cluster=more) == revision(server={"port": 9}) == same
    assert revision(server={"drain_timeout_s": 9}) != same
    assert revision(models={**MODELS, "chat": {"source": "file:other"}}) != same
    assert revision(models={**MODELS, "embed": {"source": "file:other"}}) == same


def test_an_etcd_with_users_and_certificates_is_that_of_the_gateway_and_of_every_replica(tmp_path: Path) -> None:
    etcd = {
        "endpoints": ["https://10.0.0.9:2379"],
        "user": "fleet",
        "password_file": "/etc/sixfold/etcd-password",
        "tls_ca": "/etc/sixfold/ca.pem",
    }
    whole = site(tmp_path, cluster={"registry": {"etcd": etcd}})
    registry = whole.cluster.registry
    assert registry is not None
    assert registry.etcd is not None
    of_gateway = whole.gateway(registry, replica_key=None).registry
    assert of_gateway is not None
    assert of_gateway.etcd == registry.etcd
    replicas = deployed(whole, "chat", registry=registry, replica_key=None, has_gpus=False).replicas
    assert NODE_IP in replicas.config
    told = ReplicaSettings.model_validate_json(replicas.model_dump_json())
    assert told.registry == registry
    assert registry.etcd.user == "fleet"


@pytest.mark.parametrize(
    ("registry", "told"),
    [
        ({"etcd": {"endpoints": ["https://a:1"], "user": "u"}}, "go together"),
        ({"etcd": {"endpoints": ["https://a:1"], "pasword": "hush"}}, "password"),
        ({}, "give either"),
        ({"etcd": "http://a:1"}, "etcd://HOST:PORT"),
    ],
)
def test_a_registry_that_is_written_wrong_is_told_with_what_to_do(tmp_path: Path, registry: object, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        site(tmp_path, cluster={"registry": registry})
    assert "hush" not in str(refused.value)


def options_of(whole: Site, service: str, tmp_path: Path, *, registry: str = "r.db") -> dict[str, Any]:
    """The options of the one model that a service's servers are told of."""
    path = tmp_path / "replica.json"
    path.write_text(
        deployed(whole, service, registry=place_of(registry), replica_key=None, has_gpus=False).replicas.config
    )
    (entry,) = load_config(path, environ={NODE_IP: "10.0.0.7"}).models.values()
    assert entry.name == "chat"
    return dict(entry.options)


def test_a_model_with_roles_is_two_services_of_which_one_hands_prompts_to_the_other(tmp_path: Path) -> None:
    whole = site(tmp_path, **roles_of({}))
    assert {name: (each.model, each.role) for name, each in whole.services.items()} == {
        "chat": ("chat", "any"),
        "chat-prefill": ("chat", "prefill"),
        "embed": ("embed", "any"),
    }
    assert options_of(whole, "chat", tmp_path) == {"kv_transfer": {"peers": ["127.0.0.1"]}}
    assert options_of(whole, "chat-prefill", tmp_path) == {"kv_transfer": {"listen": "127.0.0.1:0"}}
    made = deployed(whole, "chat-prefill", registry=place_of("r.db"), replica_key=None, has_gpus=False)
    assert (made.application, made.replicas.role) == ("chat-prefill", "prefill")


def test_prompts_are_handed_out_at_a_machines_own_address_and_taken_from_the_peers_alone(tmp_path: Path) -> None:
    whole = site(tmp_path, **roles_of({"roles": {**ROLES, "peers": ["10.0.0.7"]}}, registry="etcd://10.0.0.9:2379"))
    found = {
        name: options_of(whole, name, tmp_path, registry="etcd://10.0.0.9:2379") for name in ("chat", "chat-prefill")
    }
    assert found["chat-prefill"] == {"kv_transfer": {"listen": "10.0.0.7:0"}}
    assert found["chat"] == {"kv_transfer": {"peers": ["10.0.0.7"]}}


def test_options_of_the_model_hold_in_both_roles_and_those_of_a_role_in_it_alone(tmp_path: Path) -> None:
    models = {
        **MODELS,
        "chat": {"source": "file:chat", "options": {"dtype": "float32", "kv_transfer": {"listen": "shm"}}},
    }
    roles = {**ROLES, "decode": {"options": {"kv_transfer": {"peers": ["shm"]}}}}
    whole = site(tmp_path, **roles_of({"roles": roles}, models=models))
    assert options_of(whole, "chat-prefill", tmp_path) == {"dtype": "float32", "kv_transfer": {"listen": "shm"}}
    assert options_of(whole, "chat", tmp_path) == {"dtype": "float32", "kv_transfer": {"peers": ["shm"]}}
