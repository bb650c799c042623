"""Brings a request to the gate."""

from __future__ import annotations

import time

from sixfold.core.probe import Fields, Probe
from sixfold.core.testing.checks import fail
from sixfold.core.testing.client import Client, Sent
from sixfold.core.testing.gate import StepGate

_LOOK_S = 0.05


def send_and_hold(
    gate: StepGate, client: Client, probe: Probe, fields: Fields, *, timeout_s: float, after: int = 0
) -> Sent:
    """Sends a request and returns when a step stands before the gate.

    Args:
        gate: Of the server that the client talks to; is closed from now on.
        client: Sends it.
        probe: What is sent.
        fields: Of the request.
        timeout_s: Patience.
        after: Steps that may pass first.

    Raises:
        CheckFailed: The request was answered without a step, or never came to one.
    """
    gate.hold(after=after)
    sent = client.send(probe, fields)
    until_s = time.monotonic() + timeout_s
    while not gate.wait_holding(_LOOK_S):
        if not probe.is_job and after == 0 and sent.is_answered:
            gate.open()
            answer = sent.answer()
            fail(f"POST {probe.path} was answered with {answer.status} before any step: {answer.body[:500]!r}")
        if time.monotonic() > until_s:
            gate.open()
            fail(f"POST {probe.path} came to no step within {timeout_s:g} s. Does prepare() return?")
    return sent
