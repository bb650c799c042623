"""What a site's gateways say about demand, and what the site's own autoscaler makes of it between two bounds."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from sixfold.scaling.agent.messages import GatewayLoad, LoadReport
from sixfold.scaling.hub.messages import SiteLoad

_EXACT = 1e-9


class _Heard(NamedTuple):
    at_s: float
    report: LoadReport


class LocalDemand:
    """Demand in replicas: requests in flight over what one replica bears at its target. Owned by an agent.

    Args:
        concurrency: Requests that a replica of each model has in flight at its target utilization.
        forget_s: A gateway that says nothing for so long is gone, and its load with it.
        window_s: Replicas follow the largest demand within this time, so that a lull stops none.
    """

    def __init__(self, concurrency: dict[str, float], *, forget_s: float = 10.0, window_s: float = 120.0) -> None:
        self._concurrency = concurrency
        self._forget_s = forget_s
        self._window_s = window_s
        self._gateways: dict[str, _Heard] = {}
        self._peaks: dict[str, deque[tuple[float, float]]] = {}

    def hear(self, report: LoadReport, now_s: float) -> None:
        """Takes a gateway's report."""
        self._gateways[report.gateway_id] = _Heard(now_s, report)

    def loads(self, now_s: float) -> tuple[SiteLoad, ...]:
        """Demand of the clients of this site's gateways, by model and origin; for the hub."""
        total: dict[tuple[str, str], float] = {}
        for report in self._present(now_s):
            for load in report.demand:
                total[load.model, load.origin] = total.get((load.model, load.origin), 0.0) + self._busy(load)
        return tuple(
            SiteLoad(model=model, origin=origin, num_replicas=count) for (model, origin), count in sorted(total.items())
        )

    def wanted(self, model: str, now_s: float) -> int:
        """Replicas that the requests routed here need, before any bound."""
        busy = sum(self._busy(load) for report in self._present(now_s) for load in report.routed if load.model == model)
        peaks = self._peaks.setdefault(model, deque())
        while peaks and peaks[-1][1] <= busy:
            peaks.pop()
        peaks.append((now_s, busy))
        while peaks[0][0] < now_s - self._window_s:
            peaks.popleft()
        return math.ceil(peaks[0][1] - _EXACT)

    def num_routed(self, model: str, now_s: float) -> float:
        """Requests of the model that gateways have here now."""
        return sum(
            load.num_in_flight for report in self._present(now_s) for load in report.routed if load.model == model
        )

    def concurrency(self, model: str) -> float:
        """Requests that a replica has in flight at its target."""
        return self._concurrency.get(model, 1.0)

    def _busy(self, load: GatewayLoad) -> float:
        return load.num_in_flight / self.concurrency(load.model)

    def _present(self, now_s: float) -> list[LoadReport]:
        self._gateways = {key: item for key, item in self._gateways.items() if now_s - item.at_s <= self._forget_s}
        return [report for _, report in self._gateways.values()]
