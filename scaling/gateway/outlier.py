"""Leaves replicas alone that answer badly, by the rules of Envoy's outlier detection, or far later than the others.

A replica that is slow and not broken (a hot card, a neighbour that takes the memory's bandwidth, a full disk) passes its probes
and holds its requests for long; Envoy has no rule for it. Here medians of the time to the first byte are compared, each over one
interval and of one model, since another model may rightly take longer: they take no offence at a few long prompts, and no clock
but the gateway's enters.

Source: Envoy documentation, "Outlier detection" (consecutive 5xx, success rate, ejection times) and "Panic threshold".
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from sixfold.core.decisions import DecisionLog
from sixfold.scaling.gateway.settings import OutlierSettings

_MAX_DELAYS = 1024
"""Of one interval that are kept of a replica, of each model."""


@dataclass(slots=True)
class _Host:
    num_consecutive: int = 0
    num_ejections: int = 0
    ejected_until_s: float = 0.0
    num_requests: int = 0
    num_successes: int = 0
    delays_s: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    waiting: dict[int, tuple[str, float]] = field(default_factory=dict[int, tuple[str, float]])


class OutlierDetector:
    """What was seen of each replica. A fold over (outcome, now): it reads no clock.

    Args:
        settings: Thresholds.
        decisions: Told who is ejected, and why.
    """

    def __init__(self, settings: OutlierSettings, decisions: DecisionLog | None = None) -> None:
        self._settings = settings
        self._decisions = decisions or DecisionLog()
        self._hosts: dict[str, _Host] = {}
        self._swept_at_s: float | None = None
        self.num_ejections = 0

    def retain(self, replica_ids: Sequence[str]) -> None:
        """Forgets replicas that are none of these."""
        self._hosts = {each: self._hosts.get(each, _Host()) for each in replica_ids}

    def sent(self, replica_id: str, number: int, now_s: float, *, model: str) -> None:
        """A request for a model was sent; its number is its own."""
        self._hosts.setdefault(replica_id, _Host()).waiting[number] = (model, now_s)

    def answered(self, replica_id: str, number: int, now_s: float) -> None:
        """The first bytes of its answer came."""
        host = self._hosts.setdefault(replica_id, _Host())
        model, began_s = host.waiting.pop(number, ("", None))
        if began_s is None:
            return
        delays_s = host.delays_s.setdefault(model, [])
        if len(delays_s) < _MAX_DELAYS:
            delays_s.append(now_s - began_s)

    def given_up(self, replica_id: str, number: int) -> None:
        """Nobody waits for the answer any more; harmless when said of one that came."""
        host = self._hosts.get(replica_id)
        if host is not None:
            host.waiting.pop(number, None)

    def succeeded(self, replica_id: str) -> None:
        """An answer came that is the replica's own doing: below 500."""
        host = self._hosts.setdefault(replica_id, _Host())
        host.num_consecutive = 0
        host.num_requests += 1
        host.num_successes += 1

    def failed(self, replica_id: str, now_s: float) -> None:
        """A server error, or a connection that could not be made or was lost."""
        host = self._hosts.setdefault(replica_id, _Host())
        host.num_requests += 1
        host.num_consecutive += 1
        if host.num_consecutive >= self._settings.consecutive_5xx:
            host.num_consecutive = 0
            self._eject(replica_id, now_s, f"{self._settings.consecutive_5xx} failures in a row")

    def ejected(self, now_s: float) -> frozenset[str]:
        """The replicas to leave alone: none when they are so many that the rest would break down under the load."""
        self._sweep_if_due(now_s)
        found = frozenset(each for each, host in self._hosts.items() if host.ejected_until_s > now_s)
        num_left = len(self._hosts) - len(found)
        return frozenset() if num_left * 100 < self._settings.panic_percent * len(self._hosts) else found

    def _sweep_if_due(self, now_s: float) -> None:
        if self._swept_at_s is None:
            self._swept_at_s = now_s
        if now_s - self._swept_at_s < self._settings.interval_s:
            return
        self._swept_at_s = now_s
        self._eject_unsuccessful(now_s)
        self._eject_slow(now_s)
        for host in self._hosts.values():
            if host.num_ejections and host.ejected_until_s + self._settings.interval_s <= now_s:
                host.num_ejections -= 1
            host.num_requests = host.num_successes = 0
            host.delays_s.clear()

    def _eject_unsuccessful(self, now_s: float) -> None:
        settings = self._settings
        busy = {
            each: host
            for each, host in self._hosts.items()
            if host.num_requests >= settings.success_rate_request_volume
        }
        if len(busy) < settings.success_rate_min_hosts:
            return
        rates = [host.num_successes / host.num_requests for host in busy.values()]
        least = statistics.fmean(rates) - settings.success_rate_stdev_factor * statistics.pstdev(rates)
        for replica_id, rate in zip(busy, rates, strict=True):
            if rate < least:
                self._eject(replica_id, now_s, f"a success rate of {rate:.1%}, where {least:.1%} is the least")

    def _eject_slow(self, now_s: float) -> None:
        factor = self._settings.slow_factor
        if factor is None:
            return
        for model in sorted({model for host in self._hosts.values() for model in _models_of(host)}):
            medians = self._medians(model, now_s)
            for replica_id, median_s in medians.items():
                others = [each for other, each in medians.items() if other != replica_id]
                usual_s = statistics.median(others) if others else median_s
                if median_s > max(factor * usual_s, usual_s + self._settings.slow_least_s):
                    reason = f"first bytes of {model} after {median_s:.2f} s, where the others take {usual_s:.2f} s"
                    self._eject(replica_id, now_s, reason)

    def _medians(self, model: str, now_s: float) -> dict[str, float]:
        """The time to the first byte of those that had enough requests, in seconds."""
        medians: dict[str, float] = {}
        for replica_id, host in self._hosts.items():
            # What still waits says most of one that answers nothing; the newest would make any look quick.
            waits = [now_s - began_s for each, began_s in host.waiting.values() if each == model]
            late = [wait_s for wait_s in waits if wait_s > self._settings.slow_least_s]
            delays_s = host.delays_s.get(model, [])
            if len(delays_s) + len(late) >= self._settings.slow_request_volume:
                medians[replica_id] = statistics.median([*delays_s, *late])
        return medians

    def _eject(self, replica_id: str, now_s: float, reason: str) -> None:
        host = self._hosts[replica_id]
        if host.ejected_until_s > now_s:
            return
        num_ejected = sum(each.ejected_until_s > now_s for each in self._hosts.values())
        allowed = max(1, len(self._hosts) * self._settings.max_ejection_percent // 100)
        if num_ejected >= allowed or len(self._hosts) == 1:
            return
        host.num_ejections += 1
        self.num_ejections += 1
        seconds = min(self._settings.base_ejection_s * host.num_ejections, self._settings.max_ejection_s)
        host.ejected_until_s = now_s + seconds
        self._decisions.changed(
            "ejected",
            "in use",
            f"left alone for {seconds:.0f} s",
            reason,
            objective=f"at most {self._settings.max_ejection_percent}% or one; none below {self._settings.panic_percent}% left",
            source=replica_id,
        )


def _models_of(host: _Host) -> set[str]:
    return {*host.delays_s, *(model for model, _began_s in host.waiting.values())}
