"""What a candidate of the hub has heard of the sites, and what it takes for true when it hears nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from sixfold.scaling.hub.messages import SiteReport
from sixfold.scaling.hub.model import (
    LIVE,
    LOST,
    SILENT,
    Capacity,
    Constraints,
    Latency,
    ModelDemand,
    OriginLoad,
    Plan,
    Site,
    Snapshot,
    Weights,
)


class KnownSite(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator says about a site; the rest it reports itself.

    Attributes:
        site_id: Its name.
        region: What region locks name. Never taken from a report: a wrong region would break a lock.
        failure_domain: Sites of one domain are taken to fail together; the site alone where empty.
        prices: What an accelerator costs an hour, by class; what the site says where it is missing.
    """

    site_id: str
    region: str
    failure_domain: str = ""
    prices: dict[str, float] = {}


class FleetSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator says about the fleet; the same for every candidate.

    Attributes:
        sites: All sites that there may be.
        models: Constraints by model.
        latencies: Between origins and sites.
        weights: What is weighed.
        silent_after_s: A site that said nothing for this long is left as it is.
        lost_after_s: After this long it is counted out, and its demand is placed elsewhere.
        hold_s: A fall of demand counts only after this long: a site that was lost takes its reports with it, not its clients.
        min_heard_share: A candidate that hears less of the planned sites does not lead: the fault is probably its own.
    """

    sites: tuple[KnownSite, ...]
    models: dict[str, Constraints]
    latencies: tuple[Latency, ...] = ()
    weights: Weights = Weights()
    silent_after_s: float = 6.0
    lost_after_s: float = 20.0
    hold_s: float = 120.0
    min_heard_share: float = 0.5


class _Demand(NamedTuple):
    model: str
    origin: str


class FleetView:
    """Reports in, snapshots out. Owned by one candidate; every candidate hears every site, so each can lead at once.

    Args:
        settings: Of the operator.
        now_s: When the candidate started to listen; silence counts from there.
    """

    def __init__(self, settings: FleetSettings, now_s: float) -> None:
        self._settings = settings
        self._started_s = now_s
        self._reports: dict[str, SiteReport] = {}
        self._heard_s: dict[str, float] = {}
        # Per demand (time, amount) with falling amounts: the first is the largest of the last hold_s.
        self._peaks: dict[_Demand, deque[tuple[float, float]]] = {}

    def hear(self, report: SiteReport, now_s: float) -> bool:
        """Takes a report; False if it is of an unknown site, or older than one that was heard lately.

        After a silence any report is taken: an agent that lost its disk counts its incarnations from the beginning.
        """
        known = any(site.site_id == report.site_id for site in self._settings.sites)
        if not known:
            return False
        if self.state(report.site_id, now_s) == LIVE and not report.newer_than(self._reports.get(report.site_id)):
            return False
        self._reports[report.site_id] = report
        self._heard_s[report.site_id] = now_s
        return True

    def remember(self, plan: Plan, now_s: float) -> None:
        """Takes the demand of a plan for seen just now; called once, with the first plan that a new candidate reads.

        Agents and gateways may have started anew at the same time and say nothing yet: a new leader that believed them would stop
        what serves.
        """
        for load in plan.loads:
            self._note(_Demand(load.model, load.origin), load.num_replicas, now_s)

    def state(self, site_id: str, now_s: float) -> str:
        """`LIVE`, `SILENT` or `LOST`."""
        silence_s = now_s - self._heard_s.get(site_id, self._started_s)
        if silence_s > self._settings.lost_after_s:
            return LOST
        return LIVE if site_id in self._heard_s and silence_s <= self._settings.silent_after_s else SILENT

    def hears_enough(self, previous: Plan | None, now_s: float) -> bool:
        """Whether this candidate sees so much of what was planned that its view is the fleet's and not its own trouble."""
        planned = previous.site_ids if previous is not None else ()
        known = {site.site_id for site in self._settings.sites}
        expected = [site_id for site_id in planned if site_id in known]
        heard = sum(self.state(site_id, now_s) == LIVE for site_id in expected)
        anybody = any(self.state(site_id, now_s) == LIVE for site_id in known)
        return anybody and heard >= self._settings.min_heard_share * len(expected)

    def highest_epoch(self) -> int:
        """The newest plan that any site says it has."""
        return max((report.epoch for report in self._reports.values()), default=0)

    def snapshot(self, previous: Plan | None, now_s: float) -> Snapshot:
        """What a plan is to be computed from now."""
        self.observe(now_s)
        demands = self._demands()
        models = tuple(
            ModelDemand(model=name, constraints=constraints, loads=demands.get(name, ()))
            for name, constraints in sorted(self._settings.models.items())
        )
        return Snapshot(
            sites=tuple(self._site(known, previous, now_s) for known in self._settings.sites),
            models=models,
            latencies=self._settings.latencies,
            previous=previous,
            weights=self._settings.weights,
        )

    def _site(self, known: KnownSite, previous: Plan | None, now_s: float) -> Site:
        report, state = self._reports.get(known.site_id), self.state(known.site_id, now_s)
        if report is not None:
            capacities, running = report.capacities, report.running
        elif previous is not None and known.site_id in previous.site_ids:
            # A new candidate has not heard it yet: it has at least what the last plan promised there.
            capacities, running = _promised(previous, known.site_id), ()
        else:
            capacities, running, state = (), (), LOST
        return Site(
            site_id=known.site_id,
            region=known.region,
            failure_domain=known.failure_domain,
            capacities=tuple(_priced(capacity, known.prices) for capacity in capacities),
            state=state,
            running=running,
        )

    def observe(self, now_s: float) -> None:
        """Notes the demand of now; candidates that only follow do so too, or they would lead without a past."""
        current: dict[_Demand, float] = {}
        for site_id, report in self._reports.items():
            if self.state(site_id, now_s) != LOST:
                for load in report.loads:
                    key = _Demand(load.model, load.origin)
                    current[key] = current.get(key, 0.0) + load.num_replicas
        for key in {*current, *self._peaks}:
            self._note(key, current.get(key, 0.0), now_s)

    def _demands(self) -> dict[str, tuple[OriginLoad, ...]]:
        found: dict[str, list[OriginLoad]] = {}
        for key, peaks in sorted(self._peaks.items()):
            if peaks[0][1] > 0:
                found.setdefault(key.model, []).append(OriginLoad(origin=key.origin, num_replicas=peaks[0][1]))
        return {model: tuple(loads) for model, loads in found.items()}

    def _note(self, key: _Demand, amount: float, now_s: float) -> None:
        peaks = self._peaks.setdefault(key, deque())
        while peaks and peaks[-1][1] <= amount:
            peaks.pop()
        peaks.append((now_s, amount))
        while peaks[0][0] < now_s - self._settings.hold_s:
            peaks.popleft()
        if amount == peaks[0][1] == 0:
            del self._peaks[key]


def _promised(plan: Plan, site_id: str) -> tuple[Capacity, ...]:
    units: dict[str, int] = {}
    for item in plan.at(site_id):
        units[item.accelerator] = units.get(item.accelerator, 0) + item.ceiling * item.units
    return tuple(Capacity(accelerator=name, num_units=count) for name, count in sorted(units.items()))


def _priced(capacity: Capacity, prices: Mapping[str, float]) -> Capacity:
    price = prices.get(capacity.accelerator, capacity.price_per_hour)
    return msgspec.structs.replace(capacity, price_per_hour=price)
