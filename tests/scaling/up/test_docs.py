"""docs/scaling.md describes the ``cluster`` part with its true defaults, and its example is valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from sixfold.scaling.spec import RolesSpec, RolloutSpec
from sixfold.scaling.up.settings import ClusterSettings, GatewayPart, ServicePart, load_site
from tests.core.test_config_docs import written

DOC = (Path(__file__).parents[3] / "docs" / "scaling.md").read_text(encoding="utf-8")
SECTIONS: dict[str, type[BaseModel]] = {"cluster": ClusterSettings, "cluster.services.NAME": ServicePart}


def section(title: str) -> str:
    return re.split(r"^#", DOC.partition(f"### {title}\n")[2], flags=re.MULTILINE)[0]


@pytest.mark.parametrize("title", SECTIONS)
def test_the_table_has_exactly_the_fields_with_their_defaults(title: str) -> None:
    found = re.findall(r"^\| `(\w+)` \| (.*?) \| .+ \|$", section(title), flags=re.MULTILINE)
    fields = SECTIONS[title].model_fields
    assert [name for name, _default in found] == list(fields)
    for name, default in found:
        if default not in ("all defaults", "one replica"):
            assert default == written(fields[name].default), name


def test_the_table_of_rollouts_has_exactly_the_fields_with_their_defaults() -> None:
    text = re.split(r"^## ", DOC.partition("## Changing models\n")[2], flags=re.MULTILINE)[0]
    found = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \| .+ \|$", text, flags=re.MULTILINE))
    expected = RolloutSpec().model_dump(mode="json")
    assert list(found) == list(expected)
    assert {name: yaml.safe_load(value) for name, value in found.items()} == expected


def test_the_table_of_roles_names_every_field_and_its_example_is_valid(tmp_path: Path) -> None:
    text = re.split(r"^## ", DOC.partition("## Prefill and decode\n")[2], flags=re.MULTILINE)[0]
    keys = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", text, flags=re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(keys))) == sorted(RolesSpec.model_fields)
    (example,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    path = tmp_path / "config.yaml"
    path.write_text("models: {chat: {source: 'hf:Qwen/Qwen3-0.6B'}}\n" + example)
    assert list(load_site(path, environ={"SIXFOLD_CACHE_DIR": "/cache"}).services) == ["chat", "chat-prefill"]


def test_every_field_of_the_gateways_part_is_named() -> None:
    assert [name for name in GatewayPart.model_fields if f"`{name}`" not in section("cluster.gateway")] == []


def test_the_example_is_valid(tmp_path: Path) -> None:
    example = next(text for text in re.findall(r"```yaml\n(.*?)```", DOC, flags=re.DOTALL) if "cluster:" in text)
    path = tmp_path / "config.yaml"
    path.write_text(example)
    site = load_site(path, environ={"SIXFOLD_CACHE_DIR": "/cache"})
    assert site.part("chat").scaling.max_replicas == 4
    assert site.part("notes").scaling.max_replicas == 1


def test_every_test_that_the_table_of_faults_names_is_there() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", section("Each fault and its tests"))
    assert len(named) > 25
    for path, name in named:
        text = (Path(__file__).parents[1] / path).read_text(encoding="utf-8")
        assert re.search(rf"^ *(async )?def {name}\(", text, flags=re.MULTILINE), f"{path} has no {name}"
