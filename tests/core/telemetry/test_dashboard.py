"""The dashboard and the alert rules: each expression parses, and asks for metrics and labels that live processes expose."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from sixfold.core.errors import QueueFull, StepFailed
from sixfold.core.family import Family, MetricKind
from sixfold.core.memory.ledger import MemoryLedger
from sixfold.core.memory.need import Claim, MemoryKind
from sixfold.core.plugins import load_plugins
from sixfold.core.serving.memory_metrics import MemoryCollector
from sixfold.scaling.gateway.metrics import GAUGES, GatewayMetrics
from tests.core.serving.fake_replica import FakeModel, FakeReplica, FakeSnapshot
from tests.core.serving.server_thread import ServerThread

DOCS = Path(__file__).parents[3] / "docs"
DASHBOARD: dict[str, Any] = json.loads((DOCS / "grafana" / "sixfold.json").read_text())
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((DOCS / "grafana" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PROMETHEUS_OWN = {"up": frozenset({"job", "instance"})}
SCRAPED = frozenset({"job", "instance", "le"})
"""Labels that scraping adds, and that histograms have."""

Exposed = dict[str, frozenset[str]]


class Resident:
    name, num_waiting, num_loads = "draw", 1, 2
    measured_bytes = {"cpu": 5}  # noqa: RUF012 - read only
    num_unloads = {"room": 1}  # noqa: RUF012 - read only


class Host:
    def __init__(self) -> None:
        self.ledger = MemoryLedger({"cpu": 100})
        self.ledger.claim("draw", "draw", (Claim(device="cpu", kind=MemoryKind.WEIGHTS, num_bytes=5),))

    def residences(self) -> list[Resident]:
        return [Resident()]


def samples_of(text: str) -> Exposed:
    found: dict[str, frozenset[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, frozenset()) | frozenset(sample.labels)
    return found


def model_of(family: Family) -> FakeModel:
    """One of a family, whose replica reports all that the family declares."""
    names = [spec.name for spec in family.metrics if spec.kind is not MetricKind.HISTOGRAM]
    names += ["num_preemptions_total", "num_sequences_waiting", "steps_total", "step_units_total", "step_budget_units"]
    names += ["decisions_total", "step_seconds_total"]
    replica = FakeReplica(snapshot=FakeSnapshot(metrics=dict.fromkeys(names, 1.0)))
    return FakeModel(family.name, family=family, replicas=[replica])


@pytest.fixture(scope="module")
def exposed() -> Iterator[Exposed]:
    """What a server of all families and a gateway expose, after a request of each end."""
    replica = FakeReplica()
    models = [FakeModel("parrot", replicas=[replica]), *map(model_of, load_plugins().families.values())]
    with ServerThread(*models) as server:
        server.server.context.metrics.registry.register(MemoryCollector(Host()))
        server.ask("POST", "/v1/echo", {"model": "parrot", "input": "a b", "stream": True})
        for rejection in (QueueFull("full"), None):
            replica.rejection = rejection
            server.echo()
        replica.rejection, replica.by_hand = None, True
        helper = threading.Thread(target=lambda: replica.next().fail(StepFailed("no")))
        helper.start()
        server.echo()
        helper.join()
        text = server.ask("GET", "/metrics").body.decode()
    found = samples_of(text)
    # Histograms of families have samples once there are observations; that they are declared is what counts.
    for line in re.findall(r"^# TYPE (\S+) histogram$", text, flags=re.MULTILINE):
        found.setdefault(f"{line}_bucket", frozenset({"model_name", "engine"}))
    yield found


@pytest.fixture(scope="module")
def gateway_exposed() -> Exposed:
    """What a gateway declares: its label names do not depend on traffic."""
    metrics = GatewayMetrics(lambda: {name: {("x",) * len(labels): 1.0} for name, (_text, labels) in GAUGES.items()})
    for family in vars(metrics).values():
        if getattr(family, "_labelnames", ()):
            family.labels(*("x" for _label in family._labelnames))
    return samples_of(metrics.exposition().decode())


def selectors(node: Any) -> Iterator[Any]:
    """All vector selectors of an expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        if hasattr(node, name):
            yield from selectors(getattr(node, name))
    for argument in getattr(node, "args", ()):
        yield from selectors(argument)


def groupings(node: Any) -> Iterator[tuple[list[str], Any]]:
    """The labels of each ``by``, and the expression that is grouped."""
    if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
        yield list(node.modifier.labels), node.expr
    for name in ("lhs", "rhs", "expr"):
        if hasattr(node, name):
            yield from groupings(getattr(node, name))
    for argument in getattr(node, "args", ()):
        yield from groupings(argument)


def check(expression: str, exposed: Exposed) -> None:
    parsed = promql_parser.parse(expression.replace("$__rate_interval", "5m"))
    found = list(selectors(parsed))
    assert found, expression
    for selector in found:
        assert selector.name in exposed, f"{selector.name} is not exposed: {expression}"
        labels = exposed[selector.name] | SCRAPED
        assert {matcher.name for matcher in selector.matchers.matchers} <= labels, expression
    for grouped, inner in groupings(parsed):
        for selector in selectors(inner):
            assert set(grouped) <= exposed[selector.name] | SCRAPED, f"{selector.name} lacks a label of: {expression}"


def merged(first: Exposed, second: Exposed) -> Exposed:
    return {name: first.get(name, frozenset()) | second.get(name, frozenset()) for name in {*first, *second}}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_each_panel_asks_for_what_is_exposed(panel: dict[str, Any], exposed: Exposed, gateway_exposed: Exposed) -> None:
    for target in panel["targets"]:
        expression = target["expr"]
        check(expression, gateway_exposed if "$gateway" in expression else exposed)
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
            assert re.search(rf"by \([^)]*\b{label}\b", expression), f"the legend's {label} is not in: {expression}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_asks_for_what_is_exposed_and_leads_to_what_to_do(
    rule: dict[str, Any], exposed: Exposed, gateway_exposed: Exposed
) -> None:
    check(rule["expr"], PROMETHEUS_OWN | merged(exposed, gateway_exposed))
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"].endswith(".")
    assert rule["annotations"]["runbook_url"] == f"docs/observability.md#{rule['alert'].lower()}"
    section = (DOCS / "observability.md").read_text().partition(f"\n### {rule['alert']}\n")[2].partition("\n###")[0]
    assert len(section.strip()) > 80, f"docs/observability.md does not say what to do about {rule['alert']}"


def test_every_alert_of_the_runbook_exists() -> None:
    runbook = (DOCS / "observability.md").read_text().partition("## On call")[2]
    assert re.findall(r"^### (\w+)$", runbook, flags=re.MULTILINE) == [rule["alert"] for rule in RULES]


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_a_gateway_without_servers_is_found_by_the_dashboard_and_by_its_alert() -> None:
    alone = GatewayMetrics(lambda: {"gateway_buffered_bytes": {(): 0.0}, "gateway_replica_up": {}})
    exposed = samples_of(alone.exposition().decode())
    (variable,) = [each for each in DASHBOARD["templating"]["list"] if each["name"] == "gateway"]
    metric = re.fullmatch(r"label_values\(([\w:]+), job\)", variable["definition"])
    assert metric is not None and metric[1] in exposed
    (rule,) = [each for each in RULES if each["alert"] == "SixfoldGatewayWithoutServers"]
    alternatives = rule["expr"].split(" or ")
    assert any(
        {name for name in re.findall(r"sixfold:\w+", each.split("unless")[0])} <= exposed.keys()
        for each in alternatives
    )
