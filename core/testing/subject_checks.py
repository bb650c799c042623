"""Checks of a model that need no server, or one of their own."""

from __future__ import annotations

from sixfold.core.errors import ConfigError
from sixfold.core.memory.machine import read_machine
from sixfold.core.memory.plan import plan_models
from sixfold.core.plugin_hints import operation_hints
from sixfold.core.probe import Probe
from sixfold.core.testing.checks import ModelUnderTest
from sixfold.core.testing.client import Client
from sixfold.core.testing.error_shape import check_error
from sixfold.core.testing.failure import fail, require
from sixfold.core.testing.holding import send_and_hold
from sixfold.core.testing.model_server import ModelServer
from sixfold.core.validation import validate

_NO_OPTION = "no_such_option"


def unknown_options_are_refused(subject: ModelUnderTest) -> None:
    """A misspelt option must not be silently ignored."""
    family = subject.resolved.family
    try:
        validate(family.options, {**subject.resolved.entry.options, _NO_OPTION: 1})
    except ConfigError as error:
        require(
            _NO_OPTION in str(error),
            f"The options of {family.name} are refused without naming the unknown one: {error}",
        )
        return
    fail(f'{family.options.__name__} takes any option. Give it model_config = ConfigDict(extra="forbid").')


def operations_are_known(subject: ModelUnderTest) -> None:
    """What its family says it can do is something that clients can ask for."""
    hints = operation_hints(subject.resolved.family, subject.plugins.apis.values())
    if hints:
        fail(f"{' '.join(hints)} If a route of your own asks for it, name it in Api.operations.")


def plan_counts_its_memory(subject: ModelUnderTest) -> None:
    """``sixfold plan`` says what it will take, before it is loaded (`Family.memory`)."""
    plan = plan_models([subject.resolved], read_machine({}))
    require(plan.models, f"`sixfold plan` can't tell what {subject.name} takes: {'; '.join(plan.problems)}")


def bounds_answer_429(subject: ModelUnderTest) -> None:
    """A full queue answers at once, says when to come back, and loses nobody who was in."""
    probes = subject.probes
    with subject.server(max_queue_units=1) as server, subject.client(server) as client:
        for probe in probes:
            _check_bound(server, client, subject, probe)


def _check_bound(server: ModelServer, client: Client, subject: ModelUnderTest, probe: Probe) -> None:
    name = subject.name
    first = send_and_hold(server.gate, client, probe, probe.make_body(name, 0), timeout_s=subject.patience_s)
    refused = client.send(probe, probe.make_body(name, 1)).answer()
    error = check_error(refused, 429, f"POST {probe.path} beside one that fills the queue")
    require(error["code"] == "queue_full", f"A full queue has the code {error['code']!r}, not 'queue_full': {error}")
    retry_after = refused.headers.get("retry-after", "")
    require(
        retry_after.isdigit() and int(retry_after) >= 1,
        f"A 429 has the Retry-After {retry_after!r}; it must be a number of seconds. Let QueueFull pass as it is.",
    )
    server.gate.open()
    client.content(probe, first)  # raises if it was lost
    client.content(probe, client.send(probe, probe.make_body(name, 1)))
