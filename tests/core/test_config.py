"""What a configuration file may say, and in which order file, environment and flags win."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import JsonValue, ValidationError

from sixfold.core.config import Limits, Objective, Settings, default_cache_dir, load_config


def load(
    folder: Path, text: str, environ: Mapping[str, str] | None = None, flags: Mapping[str, JsonValue] | None = None
) -> Settings:
    path = folder / "sixfold.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, environ=environ or {}, flags=flags or {})


def test_a_source_alone_is_a_complete_model(tmp_path: Path) -> None:
    entry = load(tmp_path, 'models: {chat: {source: "hf:Qwen/Qwen3-0.6B"}}').models["chat"]
    assert entry.name == "chat"
    assert entry.source == "hf:Qwen/Qwen3-0.6B"
    assert entry.family is None
    assert entry.objective == Objective()
    assert entry.limits == Limits(request_timeout_s=600.0)
    assert (entry.replicas, entry.device, entry.aliases, dict(entry.options)) == (1, "auto", (), {})


def test_every_field_of_an_entry_is_read(tmp_path: Path) -> None:
    entry = load(
        tmp_path,
        """
        models:
          org/model:
            source: file:/models/m
            family: a/b
            options: {depth: 3, nested: {list: [1, 2]}}
            objective: {p95_ttft_s: 0.3}
            limits: {max_queue_units: 10, max_running_sequences: 2, max_step_units: 5, request_timeout_s: null}
            aliases: [m, "m:latest"]
            replicas: 2
            device: cuda:1
            quantization: null
        """,
    ).models["org/model"]
    assert entry.names == ("org/model", "m", "m:latest")
    assert entry.options == {"depth": 3, "nested": {"list": [1, 2]}}
    assert entry.objective.p95_ttft_s == 0.3
    assert entry.limits.request_timeout_s is None
    assert (entry.limits.max_queue_units, entry.limits.max_running_sequences, entry.limits.max_step_units) == (10, 2, 5)
    assert (entry.family, entry.replicas, entry.device) == ("a/b", 2, "cuda:1")


def test_the_objective_throughput_names_no_target(tmp_path: Path) -> None:
    entry = load(tmp_path, "models: {a: {source: 'xs:y', objective: throughput}}").models["a"]
    assert entry.objective == Objective()


def test_settings_are_frozen(tmp_path: Path) -> None:
    settings = load(tmp_path, "models: {a: {source: 'xs:y'}}")
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings.models["a"], "replicas", 3)  # noqa: B010 - plain assignment is a type error, as it should be


def test_a_source_may_be_a_mapping_with_the_scheme_as_its_key(tmp_path: Path) -> None:
    entry = load(tmp_path, "models: {a: {source: {pypi: {path: p, wheels: [w]}}}}").models["a"]
    assert entry.source == 'pypi:{"path": "p", "wheels": ["w"]}'
    short = load(tmp_path, "models: {a: {source: {hf: org/repo}}}").models["a"]
    assert short.source == "hf:org/repo"


def test_a_relative_file_source_starts_at_the_folder_of_the_configuration(tmp_path: Path) -> None:
    models = load(tmp_path, "models: {a: {source: 'file:m'}, b: {source: {file: m}}, c: {source: 'file:/abs'}}").models
    assert models["a"].source == f"file:{tmp_path.resolve() / 'm'}"
    assert models["b"].source == models["a"].source
    assert models["c"].source == "file:/abs"


def test_the_environment_overrides_the_file_and_flags_override_the_environment(tmp_path: Path) -> None:
    text = "{models: {a: {source: 'xs:y'}}, server: {host: file-host, port: 1, drain_timeout_s: 9}}"
    environ = {"SIXFOLD_SERVER__PORT": "2", "SIXFOLD_SERVER__HOST": "env-host"}
    server = load(tmp_path, text, environ, {"port": 3, "host": None}).server
    assert (server.host, server.port, server.drain_timeout_s) == ("env-host", 3, 9.0)


def test_a_server_variable_may_hold_a_list(tmp_path: Path) -> None:
    environ = {"SIXFOLD_SERVER__CORS_ORIGINS": '["https://a.example", "https://b.example"]'}
    server = load(tmp_path, "models: {a: {source: 'xs:y'}}", environ).server
    assert server.cors_origins == ("https://a.example", "https://b.example")


def test_the_variables_that_kubernetes_sets_for_a_service_are_left_alone(tmp_path: Path) -> None:
    environ = {"SIXFOLD_PORT": "tcp://10.0.0.1:8000", "SIXFOLD_SERVER_PORT": "tcp://10.0.0.1:80"}
    assert load(tmp_path, "models: {a: {source: 'xs:y'}}", environ).server.port == 8000


def test_variables_of_the_environment_are_filled_in(tmp_path: Path) -> None:
    text = "models: {a: {source: 'hf:${ORG}/m', replicas: '${N:-2}', device: 'cuda:${GPU:-0}'}}"
    entry = load(tmp_path, text, {"ORG": "acme", "GPU": ""}).models["a"]
    assert (entry.source, entry.replicas, entry.device) == ("hf:acme/m", 2, "cuda:0")


def test_the_cache_folder_comes_from_the_environment_then_the_file_then_the_users_cache(tmp_path: Path) -> None:
    text = "{models: {a: {source: 'xs:y'}}, cache_dir: kept}"
    assert load(tmp_path, text).cache_dir == tmp_path.resolve() / "kept"
    assert load(tmp_path, text, {"SIXFOLD_CACHE_DIR": "/elsewhere"}).cache_dir == Path("/elsewhere")
    assert load(tmp_path, "models: {a: {source: 'xs:y'}}", {"XDG_CACHE_HOME": "/c"}).cache_dir == Path("/c/sixfold")
    assert default_cache_dir({}) == Path("~/.cache/sixfold").expanduser()


def test_yaml_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    text = "models:\n  a: &base {source: 'xs:y', replicas: 3}\n  b: {<<: *base, replicas: 4}\n"
    models = load(tmp_path, text).models
    assert (models["a"].replicas, models["b"].replicas, models["b"].source) == (3, 4, "xs:y")
