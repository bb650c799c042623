"""docs/hub.md names every key, and its examples are configurations that load."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from sixfold.scaling.agent.config import AcceleratorSettings, AgentSettings, ReplicaSettings
from sixfold.scaling.hub.config import (
    HubSettings,
    ModelSettings,
    SiteSettings,
    StoreSettings,
    WeightSettings,
    load_section,
)

TEXT = (Path(__file__).parents[3] / "docs" / "hub.md").read_text(encoding="utf-8")
KINDS = (
    HubSettings,
    StoreSettings,
    SiteSettings,
    ModelSettings,
    WeightSettings,
    AgentSettings,
    AcceleratorSettings,
    ReplicaSettings,
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_key_is_documented(kind: type[BaseModel]) -> None:
    assert [name for name in kind.model_fields if f"`{name}" not in TEXT] == []


def test_the_examples_load(tmp_path: Path) -> None:
    hub, agent = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "hub.yaml").write_text(hub)
    (tmp_path / "eu.yaml").write_text(agent)
    settings = load_section(tmp_path / "hub.yaml", "hub", HubSettings, {})
    assert [site.site_id for site in settings.fleet().sites] == ["eu", "us"]
    assert load_section(tmp_path / "eu.yaml", "agent", AgentSettings, {}).models["chat"].concurrency == 7
