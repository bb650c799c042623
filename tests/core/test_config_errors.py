"""Every mistake in a configuration is named with its file, line and dotted path, and with what to write instead."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import JsonValue

from sixfold.core.config import load_config
from sixfold.core.errors import ConfigError


def refuse(
    folder: Path, text: str, environ: Mapping[str, str] | None = None, flags: Mapping[str, JsonValue] | None = None
) -> str:
    path = folder / "sixfold.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ=environ or {}, flags=flags or {})
    return str(caught.value).replace(str(path), "FILE")


def test_an_unknown_key_is_refused_with_its_line_and_the_nearest_known_key(tmp_path: Path) -> None:
    message = refuse(tmp_path, "models:\n  chat:\n    source: xs:y\n    replica: 2\n")
    assert message.startswith("FILE:4: models.chat.replica: unknown key. Did you mean 'replicas'? Known: aliases, ")


def test_an_unknown_key_is_found_at_any_depth(tmp_path: Path) -> None:
    message = refuse(tmp_path, "models:\n  a:\n    source: xs:y\n    limits:\n      max_queue_unit: 3\n")
    assert message.startswith("FILE:5: models.a.limits.max_queue_unit: unknown key. Did you mean 'max_queue_units'?")
    message = refuse(tmp_path, "models: {a: {source: 'xs:y'}}\nserver:\n  prot: 8000\n")
    assert message.startswith("FILE:3: server.prot: unknown key. Did you mean 'port'?")
    message = refuse(tmp_path, "model: {}\nmodels: {a: {source: 'xs:y'}}\n")
    assert message.startswith("FILE:1: model: unknown key. Did you mean 'models'?")
    keys = "server:\n  api_keys:\n    - {name: a, sha: b}\n"
    assert "FILE:4: server.api_keys[0].sha: unknown key. Did you mean 'sha256'?" in refuse(
        tmp_path, "models: {a: {source: 'xs:y'}}\n" + keys
    )


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    message = refuse(tmp_path, "models:\n  a: {source: nothing, replicas: 0}\n  b: {device: gpu}\n")
    assert [line.split(": ")[1] for line in message.splitlines()] == [
        "models.a.source",
        "models.a.replicas",
        "models.b.source",
        "models.b.device",
    ]


def test_a_missing_variable_is_named_with_its_line(tmp_path: Path) -> None:
    message = refuse(tmp_path, "models:\n  a:\n    source: 'hf:${ORG}/x'\n")
    assert message.startswith("FILE:3: models.a.source: the environment variable ORG is not set.")
    assert "${ORG:-default}" in message


def test_a_broken_reference_to_a_variable_is_refused(tmp_path: Path) -> None:
    for text in ("${", "${1A}", "${A B}", "${}"):
        message = refuse(tmp_path, f"models:\n  a:\n    source: 'hf:{text}'\n", {"A": "x"})
        assert "FILE:3: models.a.source" in message
        assert "$${" in message


def test_a_duplicate_key_is_refused_with_both_lines(tmp_path: Path) -> None:
    message = refuse(tmp_path, "models:\n  a: {source: 'xs:y'}\n  a: {source: 'xs:z'}\n")
    assert message == "FILE:3: models.a is given twice, first in line 2. Remove one."


def test_a_key_that_yaml_reads_as_something_else_is_refused(tmp_path: Path) -> None:
    assert "FILE:2: the key 7 is not text. Put it in quotes." in refuse(tmp_path, "models:\n  7: {source: 'xs:y'}\n")
    assert "the key on is not text" in refuse(tmp_path, "models: {on: {source: 'xs:y'}}")


def test_broken_yaml_is_refused_with_its_line(tmp_path: Path) -> None:
    assert refuse(tmp_path, "models:\n  a: [1\n").startswith("FILE:3: not valid YAML:")
    assert refuse(tmp_path, "models: !!python/object:os.system {}").startswith("FILE:1: not valid YAML:")
    assert "\x00" not in refuse(tmp_path, "models: \x00")


def test_an_anchor_that_contains_itself_is_refused(tmp_path: Path) -> None:
    assert "contains itself" in refuse(tmp_path, "models: &m {a: *m}")


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    assert "must hold a mapping" in refuse(tmp_path, "[1, 2]")


def test_a_file_without_models_is_refused(tmp_path: Path) -> None:
    for text in ("", "server: {}", "# nothing\n"):
        assert "models: is required. Add it." in refuse(tmp_path, text)
    assert "models" in refuse(tmp_path, "models: {}")
    assert "FILE:1: models.a: must be a mapping" in refuse(tmp_path, "models: {a: }")
    assert "FILE:2: server: must be a mapping" in refuse(tmp_path, "models: {a: {source: 'xs:y'}}\nserver: 3\n")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        load_config(tmp_path / "nowhere.yaml", environ={})


def test_a_name_claimed_twice_names_both_entries(tmp_path: Path) -> None:
    message = refuse(tmp_path, "models:\n  a: {source: 'xs:y', aliases: [z]}\n  b: {source: 'xs:y', aliases: [z]}\n")
    assert "the entries 'a' and 'b' both claim the name 'z'" in message
    message = refuse(tmp_path, "models: {a: {source: 'xs:y', aliases: [b]}, b: {source: 'xs:y'}}")
    assert "the entries 'a' and 'b' both claim the name 'b'" in message
    assert "claims the name 'a' twice" in refuse(tmp_path, "models: {a: {source: 'xs:y', aliases: [a]}}")


def test_an_objective_names_exactly_one_known_target(tmp_path: Path) -> None:
    for objective in ("latency", "{}", "3", "{p95_ttft_s: 0.1, p95_itl_s: 0.1}", "{p95_ttft_s: 0}"):
        message = refuse(tmp_path, f"models:\n  a:\n    source: xs:y\n    objective: {objective}\n")
        assert "FILE:4: models.a.objective" in message
    message = refuse(tmp_path, "models: {a: {source: 'xs:y', objective: {p95_ttf_s: 0.3}}}")
    assert "models.a.objective.p95_ttf_s: unknown key. Did you mean 'p95_ttft_s'?" in message


def test_a_quantization_with_a_mistake_is_refused_with_its_line_and_what_is_allowed(tmp_path: Path) -> None:
    def message(policy: str) -> str:
        return refuse(tmp_path, f"models:\n  a:\n    source: xs:y\n    quantization:\n{policy}")

    assert "FILE:5: models.a.quantization.scheme: Input should be 'fp8', 'int8', 'int4' or" in message(
        "      scheme: int5"
    )
    assert "FILE:4: models.a.quantization.scheme: is required." in message("      skip: [attention]")
    text = "      scheme: int8\n      skips: [attention]"
    assert "FILE:6: models.a.quantization.skips: unknown key. Did you mean 'skip'?" in message(text)
    text = "      scheme: int8\n      skip:\n        - attention\n        - 're:('"
    assert "FILE:8: models.a.quantization.skip[1].pattern: 're:(' is no regular expression" in message(text)
    text = "      scheme: int8\n      skip:\n        - {first_block: 2}"
    assert "FILE:7: models.a.quantization.skip[0].first_block: unknown key. Did you mean 'first_blocks'?" in message(
        text
    )
    text = "      scheme: int8\n      skip: [{first_blocks: 2, last_blocks: 2}]"
    assert "skip[0]: must be text, {first_blocks: N} or {last_blocks: N}." in message(text)
    text = "      scheme: int8\n      components:\n        head: {shceme: int8}"
    assert "FILE:7: models.a.quantization.components.head.shceme: unknown key." in message(text)
    assert "models.a.quantization.scheme: Input should be" in refuse(
        tmp_path, "models: {a: {source: 'xs:y', quantization: int5}}"
    )


def test_a_source_without_a_scheme_is_refused(tmp_path: Path) -> None:
    for source in ("Qwen/Qwen3", "[a]", "{a: b, c: d}", "C:/models", "3"):
        assert "models.a.source: must be 'scheme:reference'" in refuse(tmp_path, f"models: {{a: {{source: {source}}}}}")


def test_the_name_of_an_entry_is_its_key_only(tmp_path: Path) -> None:
    message = refuse(tmp_path, "models:\n  a:\n    source: xs:y\n    name: b\n")
    assert message == "FILE:4: models.a.name: the key is the name already. Remove 'name'."
    assert "text without spaces" in refuse(tmp_path, "models: {a: {source: 'xs:y', aliases: ['b c']}}")


def test_a_wrong_variable_or_flag_is_named_as_such(tmp_path: Path) -> None:
    text = "models: {a: {source: 'xs:y'}}\nserver: {port: 1}\n"
    message = refuse(tmp_path, text, {"SIXFOLD_SERVER__PORT": "http"})
    assert message.startswith("environment variable SIXFOLD_SERVER__PORT: server.port: ")
    message = refuse(tmp_path, text, {"SIXFOLD_SERVER__PROT": "1"})
    assert message.startswith(
        "environment variable SIXFOLD_SERVER__PROT: server.prot: unknown key. Did you mean 'port'"
    )
    assert refuse(tmp_path, text, {}, {"port": 70000}).startswith("--port: server.port: ")
    assert "not a valid list" in refuse(tmp_path, text, {"SIXFOLD_SERVER__CORS_ORIGINS": "[a"})


def test_a_mistyped_secret_is_not_repeated(tmp_path: Path) -> None:
    message = refuse(
        tmp_path, "models: {a: {source: 'xs:y'}}\nserver: {api_keys: [{name: n, sha256: my-plain-secret}]}\n"
    )
    assert "server.api_keys[0].sha256" in message
    assert "my-plain-secret" not in message
