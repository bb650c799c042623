"""Leaves replicas alone that answer badly, by the rules of Envoy's outlier detection.

Source: Envoy documentation, "Outlier detection" (consecutive 5xx, success rate, ejection times) and "Panic threshold".
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from sixfold.scaling.gateway.settings import OutlierSettings


@dataclass(slots=True)
class _Host:
    num_consecutive: int = 0
    num_ejections: int = 0
    ejected_until_s: float = 0.0
    num_requests: int = 0
    num_successes: int = 0


class OutlierDetector:
    """What was seen of each replica. A fold over (outcome, now): it reads no clock.

    Args:
        settings: Thresholds.
    """

    def __init__(self, settings: OutlierSettings) -> None:
        self._settings = settings
        self._hosts: dict[str, _Host] = {}
        self._swept_at_s: float | None = None
        self.num_ejections = 0

    def retain(self, replica_ids: Sequence[str]) -> None:
        """Forgets replicas that are none of these."""
        self._hosts = {each: self._hosts.get(each, _Host()) for each in replica_ids}

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
            self._eject(host, now_s)

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
        for host in self._hosts.values():
            if host.num_ejections and host.ejected_until_s + self._settings.interval_s <= now_s:
                host.num_ejections -= 1
            host.num_requests = host.num_successes = 0

    def _eject_unsuccessful(self, now_s: float) -> None:
        settings = self._settings
        busy = [host for host in self._hosts.values() if host.num_requests >= settings.success_rate_request_volume]
        if len(busy) < settings.success_rate_min_hosts:
            return
        rates = [host.num_successes / host.num_requests for host in busy]
        least = statistics.fmean(rates) - settings.success_rate_stdev_factor * statistics.pstdev(rates)
        for host, rate in zip(busy, rates, strict=True):
            if rate < least:
                self._eject(host, now_s)

    def _eject(self, host: _Host, now_s: float) -> None:
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
