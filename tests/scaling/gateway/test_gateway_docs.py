"""docs/gateway.md describes every field with its true default, and its example is valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from sixfold.core.errors import ConfigError
from sixfold.scaling.gateway import settings as gateway_settings
from sixfold.scaling.gateway.config_file import load_gateway_config
from sixfold.scaling.gateway.plan_settings import PlanSettings
from sixfold.scaling.gateway.settings import GatewaySettings
from sixfold.scaling.registry_settings import RegistrySettings
from tests.core.test_config_docs import written

DOC = (Path(__file__).parents[3] / "docs" / "gateway.md").read_text(encoding="utf-8")
SECTIONS: dict[str, type[BaseModel]] = {
    "The file": GatewaySettings,
    "replicas[]": gateway_settings.ReplicaEntry,
    "registry": RegistrySettings,
    "plan": PlanSettings,
    "routing": gateway_settings.RoutingSettings,
    "admission": gateway_settings.AdmissionSettings,
    "retries": gateway_settings.RetrySettings,
    "hedging": gateway_settings.HedgeSettings,
    "outliers": gateway_settings.OutlierSettings,
    "disaggregation": gateway_settings.DisaggregationSettings,
    "health": gateway_settings.HealthSettings,
}


@pytest.mark.parametrize("title", SECTIONS)
def test_the_table_has_exactly_the_fields_of_the_settings_with_their_defaults(title: str) -> None:
    section = re.split(r"^#", DOC.partition(f"### {title}\n")[2], flags=re.MULTILINE)[0]
    found = re.findall(r"^\| `(\w+)` \| (.*?) \| .+ \|$", section, flags=re.MULTILINE)
    fields = SECTIONS[title].model_fields
    assert [name for name, _default in found] == list(fields)
    for name, default in found:
        field = fields[name]
        if default not in ("all defaults", '`""`'):
            assert default == ("required" if field.is_required() else written(field.default)), name


def test_the_example_is_valid(tmp_path: Path) -> None:
    example, of_a_site = re.findall(r"```yaml\n(.*?)```", DOC, flags=re.DOTALL)
    path = tmp_path / "gateway.yaml"
    path.write_text(example)
    settings = load_gateway_config(path, flags={"port": 9})
    assert (settings.server.port, len(settings.replicas), settings.replicas[1].weight) == (9, 2, 2.0)
    path.write_text(of_a_site)
    following = load_gateway_config(path, environ={"AGENT_TOKEN": "t"})
    assert following.plan is not None and following.plan.state == tmp_path / "gateway-plan.json"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("server: {port: 1}", "Name at least one replica's address"),
        ("models: {a: {source: b}}", "a gateway has no 'models'"),
        ("replicas: [http://a]\nretrys: {}", "Did you mean 'retries'"),
        ("replicas: [http://a/v1]", r"replicas\[0\].url"),
        ("replicas: [http://a, http://a]", "given twice"),
        ("registry: {ttl_s: 1}", "either path: FILE or etcd"),
        ("registry: etcd:///x", r"registry.etcd.endpoints\[0\]"),
        ("registry: {etcd: {endpoints: [http://a], user: u}}", "user and password go together"),
        ("registry: {etcd: {endpoints: [http://a], tls_ca: x}}", "every endpoint must be https"),
        ("plan: {agents: [http://a], state: s}", "set 'region' to the region of its site"),
        ("region: eu\nplan: {agents: [a], state: s}", r"plan.agents\[0\]"),
        ("replicas: [http://a]\nreplica_key: k\nserver: {host: 0.0.0.0}", "whoever reaches 0.0.0.0 uses the replicas"),
        ("replicas: [http://a]\nrouting: {policy: fast}", "routing.policy"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_place(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load_gateway_config(path)
