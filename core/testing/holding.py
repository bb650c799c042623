"""Brings a request to the gate."""

from __future__ import annotations

import time

from sixfold.core.probe import Fields, Probe
from sixfold.core.testing.client import Client, Sent
from sixfold.core.testing.failure import fail
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
        UnexpectedAnswer: Its job was refused.
    """
    gate.hold(after=after)
    sent = client.send(probe, fields)
    until_s = time.monotonic() + timeout_s
    try:
        while not gate.wait_holding(_LOOK_S):
            if sent.is_answered:
                _check_underway(client, probe, sent, after=after)
            if time.monotonic() > until_s:
                fail(f"POST {probe.path} came to no step within {timeout_s:g} s. Does prepare() return?")
    except BaseException:
        gate.open()
        raise
    return sent


def _check_underway(client: Client, probe: Probe, sent: Sent, *, after: int) -> None:
    """A job is answered at once and may fail later; of others an answer before any step is all that they get."""
    if probe.is_job:
        client.job(probe, sent.answer())
    elif after == 0:
        answer = sent.answer()
        fail(f"POST {probe.path} was answered with {answer.status} before any step: {answer.body[:500]!r}")
