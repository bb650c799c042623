"""reference/metrics.md: every metric of every process with its labels, and the attributes of spans."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from prometheus_client.registry import Collector, CollectorRegistry

from docs.generate.first_party import MODALITIES, families
from docs.generate.markdown import NOTE, cell, table
from sixfold.core.family import MetricSpec
from sixfold.core.memory.ledger import MemoryLedger
from sixfold.core.messages import Finished, ReplicaTrace, StepGroup, Usage
from sixfold.core.plugins import load_plugins
from sixfold.core.serving.memory_metrics import MemoryCollector
from sixfold.core.serving.metrics import ServingMetrics
from sixfold.core.serving.replica_metrics import ReplicaCollector
from sixfold.core.telemetry import conventions
from sixfold.core.telemetry.names import TraceNames
from sixfold.scaling.agent.service import AgentMetrics
from sixfold.scaling.gateway.metrics import GatewayMetrics
from sixfold.scaling.hub.model import Plan
from sixfold.scaling.hub.service import HubMetrics

PREFIX = "sixfold:"
HEAD = ("Metric", "Type", "Labels", "Meaning")


@dataclass(frozen=True, slots=True, order=True)
class Described:
    """A metric as Prometheus reads it.

    Attributes:
        name: Without the prefix, with ``_total`` where it counts.
        kind: ``gauge``, ``counter`` or ``histogram``.
        labels: Their names.
        text: What it says.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str

    def row(self) -> tuple[str, str, str, str]:
        """For a table."""
        labels = ", ".join(f"`{each}`" for each in self.labels)
        return (f"`{PREFIX}{self.name}`", self.kind, labels, cell(self.text))


def page() -> str:
    """The whole page."""
    parts = [NOTE, "# Metrics\n", _INTRODUCTION, "## Server\n", _SERVER]
    parts.append(table(HEAD, (each.row() for each in server_metrics())))
    parts.append(_USAGE)
    for modality, described in family_metrics().items():
        parts += [f"## Server, models of {modality}\n", table(HEAD, (each.row() for each in described))]
    for title, found in (("Gateway", gateway_metrics()), ("Hub", hub_metrics()), ("Agent", agent_metrics())):
        parts += [f"## {title}\n", table(HEAD, (each.row() for each in found))]
    rows = [(f"`{name}`", where) for name, where in span_attributes()]
    rows += [(f"`{name}`", where) for name, where in _OF_REQUESTS]
    parts += ["## Attributes of spans\n", _SPANS, table(("Attribute", "Of"), rows)]
    return "\n".join(parts)


def server_metrics() -> list[Described]:
    """Of every server, whatever its models are."""
    metrics = ServingMetrics()
    nobody = SimpleNamespace(models=tuple)
    memory: Any = SimpleNamespace(ledger=MemoryLedger({}), residences=tuple)
    directory: Any = nobody
    own = _of_registry(metrics.registry)
    others = (ReplicaCollector(directory, metrics), MemoryCollector(memory))
    return sorted([*own, *(each for collector in others for each in _of_collector(collector))])


def family_metrics() -> Mapping[str, list[Described]]:
    """What families report of themselves, by modality."""
    found: dict[str, dict[str, Described]] = {modality: {} for modality in MODALITIES}
    for family in families(load_plugins()):
        for spec in family.metrics:
            found[family.modality][spec.name] = _of_spec(spec)
    return {modality: sorted(specs.values()) for modality, specs in found.items()}


def gateway_metrics() -> list[Described]:
    """Of a gateway."""
    metrics = GatewayMetrics(lambda: {})
    return sorted(_of_registry(metrics._registry))


def hub_metrics() -> list[Described]:
    """Of a candidate of the hub."""
    hub: Any = SimpleNamespace(plan=None, leads=False, num_plans=0, site_states=dict)
    return sorted(_of_collector(HubMetrics(hub)))


def agent_metrics() -> list[Described]:
    """Of a site's agent."""
    agent: Any = SimpleNamespace(plan=Plan(), alone=False, num_write_failures=0)
    engine: Any = SimpleNamespace(held=tuple)
    return sorted(_of_collector(AgentMetrics(agent, engine)))


def span_attributes() -> Iterator[tuple[str, str]]:
    """Name of each attribute, and where it stands."""
    counts = {**dict.fromkeys(conventions._USAGE, 1), "NAME": 1}
    done: Finished[Any] = Finished(request_id="a", result=None, usage=Usage(counts=counts))
    for name in conventions.request_attributes(TraceNames(), "chat", "chat", 0):
        yield name, "a piece of work at a replica"
    for name in conventions.result_attributes(done, 0.0):
        yield name, "the same, when it has succeeded"
    for name in conventions.replica_attributes(ReplicaTrace(process_id=1)):
        yield name, "the same, about the worker"
    group = StepGroup(num_steps=1, units=1, max_batch_sequences=1, began_s=0.0, ended_s=0.0)
    for name in conventions.step_attributes(group):
        yield name, "an event that stands for one or several steps"


def _of_registry(registry: CollectorRegistry) -> Iterator[Described]:
    for collector in list(registry._collector_to_names):
        yield from _of_collector(collector)


def _of_collector(collector: Collector) -> Iterator[Described]:
    # prometheus_client tells labels with samples only; a metric that nobody has touched yet has none.
    if hasattr(collector, "_labelnames"):
        wrapper: Any = collector
        yield _described(wrapper._name, wrapper._type, wrapper._labelnames, wrapper._documentation)
        return
    for family in collector.collect():
        labels: Iterable[str] = getattr(family, "_labelnames", ())
        yield _described(family.name, family.type, labels, family.documentation)


def _described(name: str, kind: str, labels: Iterable[str], text: str) -> Described:
    name = name.removeprefix(PREFIX)
    if kind == "counter":  # the library gives some with the ending and some without
        name = name.removesuffix("_total") + "_total"
    if not text:
        raise ValueError(f"The metric {name} says nothing of itself. Give it one sentence.")
    return Described(name, kind, tuple(labels), text)


def _of_spec(spec: MetricSpec) -> Described:
    return _described(spec.name, spec.kind.value, ("model_name", "engine"), spec.help)


_INTRODUCTION = """\
What `GET /metrics` tells, in Prometheus' text. Names are vLLM's with the prefix `sixfold:` where vLLM has such a
figure. A dashboard, alerts and traces are in [seeing what a server does](../observability.md).

`model_name` is the registry's name, `engine` the number of the replica. A histogram has `_bucket`, `_sum` and `_count`.
"""

_SERVER = "Of every model, whatever its modality.\n"

_OF_REQUESTS = (
    ("http.request.method", "an HTTP request, at servers and gateways"),
    ("http.route", "the same: the route's template, never the path"),
    ("http.response.status_code", "the same, and of a gateway's try"),
    ("error.type", "whatever failed: the kind, never the text"),
    ("sixfold.request_id", "an HTTP request: what its client got as `x-request-id`"),
    ("sixfold.tenant", "the same: the name of its key"),
    ("sixfold.request.body", "the same, with `record_content` only: the JSON that was sent"),
    ("sixfold.send_wait_s", "`send`: how long the client let the server wait"),
    ("sixfold.routing.reason", "a gateway's try: why this server"),
    ("sixfold.routing.cached", "the same: how much of the prompt it was believed to have"),
    ("http.request.resend_count", "the same: how many tries went before"),
)

_USAGE = """\
Each counter of a request's `usage` that the family does not report itself is summed over finished requests as
`sixfold:NAME_total`, by `model_name`.
"""

_SPANS = """\
Of traces ([how](../observability.md#traces)): by OpenTelemetry's conventions for generative AI where these have a name.
`sixfold.usage.NAME` is any other counter of `usage`.
"""
