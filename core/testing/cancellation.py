"""The check that a request whose client has left is not computed any further, and gives back what it held."""

from __future__ import annotations

from sixfold.core.probe import Fields, Probe
from sixfold.core.testing.checks import ServedModel, eventually
from sixfold.core.testing.client import Sent
from sixfold.core.testing.comparison import difference
from sixfold.core.testing.failure import require
from sixfold.core.testing.holding import send_and_hold

_SPARE_STEPS = 2
"""The one that was about to begin when the client left, and one that a model may begin ahead."""


def cancellation_frees(served: ServedModel) -> None:
    """A client leaves before the first step, and where there are more, after it; a whole answer and a stream."""
    for probe in served.probes:
        name, client, gate = served.subject.name, served.client, served.server.gate
        body = probe.make_body(name, 0)
        gate.forget()
        expected = client.content(probe, client.send(probe, body))
        num_steps = gate.num_steps
        _check_leaving(served, probe, body, after=0, num_steps=num_steps)
        if probe.stream is not None:
            _check_leaving(served, probe, {**body, **probe.stream}, after=0, num_steps=num_steps)
        if num_steps > 1:
            _check_leaving(served, probe, {**body, **(probe.stream or {})}, after=1, num_steps=num_steps)
        again = client.content(probe, client.send(probe, body))
        tolerance = served.subject.resolved.family.batch_tolerance
        words = difference(expected, again, tolerance, when=("before", "after"))
        require(words is None, f"POST {probe.path} after others of it were cancelled: {words}.")


def _check_leaving(served: ServedModel, probe: Probe, fields: Fields, *, after: int, num_steps: int) -> None:
    client, gate, replica = served.client, served.server.gate, served.server.replica
    when = f"POST {probe.path}, whose client left {f'after {after} of {num_steps} steps' if after else 'before a step'}"
    before, patience_s = _num_cancelled(served), served.subject.patience_s
    sent = send_and_hold(gate, client, probe, fields, after=after, timeout_s=patience_s)
    deletion = _leave(served, probe, sent)
    is_noticed = eventually(lambda: _num_cancelled(served) > before, patience_s)
    gate.forget()
    gate.open()
    if deletion is not None:
        answer = deletion.answer()
        require(
            answer.status in (200, 204), f"{when}: its DELETE was answered with {answer.status} {answer.body[:300]!r}"
        )
    require(
        is_noticed,
        f"{when}: the server went on with it for {patience_s:g} s. Submit work for a call by call.run or call.start, which end "
        "it; what Services.background has begun must be cancelled by whoever began it.",
    )
    is_idle = eventually(
        lambda: replica.snapshot.num_running == replica.snapshot.num_waiting == replica.snapshot.queued_units == 0,
        patience_s,
    )
    snapshot = replica.snapshot
    require(
        is_idle,
        f"{when}: still {snapshot.num_running} sequences running, {snapshot.num_waiting} requests waiting and "
        f"{snapshot.queued_units} units queued.",
    )
    require(gate.num_steps <= _SPARE_STEPS, f"{when}: {gate.num_steps} more steps were computed.")
    held = [spec.name for spec in served.subject.resolved.family.metrics if spec.is_held]
    is_free = eventually(lambda: not any(replica.snapshot.metrics.get(name) for name in held), patience_s)
    left = {name: replica.snapshot.metrics.get(name) for name in held}
    require(
        is_free, f"{when}: it still holds {left}. Give back in release() what was taken in prepare, reserve or step."
    )


def _leave(served: ServedModel, probe: Probe, sent: Sent) -> Sent | None:
    """Closes the connection; of a job sends the DELETE, whose answer may wait for the step that is held."""
    if probe.is_job:
        return served.client.send_raw("DELETE", f"{probe.path}/{sent.answer().json['id']}")
    sent.leave()
    return None


def _num_cancelled(served: ServedModel) -> float:
    label = f'model_name="{served.subject.name}",reason="request_cancelled"'
    return served.client.metrics().get(f"sixfold:requests_failed_total{{{label}}}", 0.0)
