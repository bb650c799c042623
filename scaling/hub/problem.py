"""A snapshot made ready for placement: what may run where, what runs there already, and how good a placement is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from sixfold.scaling.hub.model import LOST, SILENT, ModelDemand, Site, Snapshot

EPSILON = 1e-6
"""Demand below this is none: what floating point leaves over must not start a replica."""


class Spot(NamedTuple):
    """A place where replicas of a model may run."""

    model: str
    site_id: str
    accelerator: str


class Pool(NamedTuple):
    """The accelerators of one class at one site."""

    site_id: str
    accelerator: str


class Flow(NamedTuple):
    """The demand of an origin for a model that a site serves."""

    model: str
    origin: str
    site_id: str


@dataclass(slots=True)
class Placement:
    """Replicas by spot and served demand by flow. Owned by the solver that builds it."""

    replicas: dict[Spot, int] = field(default_factory=dict[Spot, int])
    flows: dict[Flow, float] = field(default_factory=dict[Flow, float])

    def replaced(self, other: Placement, models: Iterable[str]) -> Placement:
        """This placement with the given models placed as in ``other``."""
        names = frozenset(models)
        replicas = {spot: count for spot, count in self.replicas.items() if spot.model not in names}
        flows = {flow: amount for flow, amount in self.flows.items() if flow.model not in names}
        replicas.update((spot, count) for spot, count in other.replicas.items() if spot.model in names)
        flows.update((flow, amount) for flow, amount in other.flows.items() if flow.model in names)
        return Placement(replicas, flows)


class Problem:
    """What a solver may do.

    Attributes:
        sites: Sites that serve, by name; lost ones are left out.
        capacity: Accelerators by pool.
        price: Of an accelerator by pool, per hour.
        models: By name, in the order of the snapshot.
        spots: Where each model may run: class, lock and site allow it.
        carried: Replicas that run now and may stay. No solver needs to stop any of them.
        frozen: Sites whose replicas must stay as they are.
        weights: What is weighed.

    Args:
        snapshot: What is known.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.weights = snapshot.weights
        self.sites: dict[str, Site] = {site.site_id: site for site in snapshot.sites if site.state != LOST}
        self.models: dict[str, ModelDemand] = {demand.model: demand for demand in snapshot.models}
        pools = [
            (Pool(site.site_id, item.accelerator), item) for site in self.sites.values() for item in site.capacities
        ]
        self.capacity = {pool: item.num_units for pool, item in pools}
        self.price = {pool: item.price_per_hour for pool, item in pools}
        self.frozen = frozenset(site.site_id for site in self.sites.values() if site.state == SILENT)
        self.spots: dict[str, tuple[Spot, ...]] = {name: self._spots(demand) for name, demand in self.models.items()}
        self._latency_s = {(item.origin, item.site_id): item.latency_s for item in snapshot.latencies}
        self.carried = self._carry(snapshot)

    def latency_s(self, origin: str, site_id: str) -> float:
        """Latency that the site adds for clients of the origin; none for its own, where nobody measured it."""
        own = origin in (site_id, self.sites[site_id].region)
        return self._latency_s.get((origin, site_id), 0.0 if own else self.weights.unknown_latency_s)

    def units(self, spot: Spot) -> int:
        """Accelerators that one replica takes there."""
        return self.models[spot.model].constraints.units[spot.accelerator]

    def hourly_price(self, spot: Spot) -> float:
        """What one replica costs there per hour."""
        return self.units(spot) * self.price[Pool(spot.site_id, spot.accelerator)]

    def used(self, replicas: Mapping[Spot, int]) -> dict[Pool, int]:
        """Accelerators that the replicas take, by pool."""
        used: dict[Pool, int] = defaultdict(int)
        for spot, count in replicas.items():
            used[Pool(spot.site_id, spot.accelerator)] += count * self.units(spot)
        return used

    def stops(self, replicas: Mapping[Spot, int], models: Iterable[str] | None = None) -> int:
        """Replicas that could stay and do not."""
        names = None if models is None else frozenset(models)
        return sum(
            max(0, count - replicas.get(spot, 0))
            for spot, count in self.carried.items()
            if names is None or spot.model in names
        )

    def wanted(self, model: str) -> int:
        """Replicas that serve the model's demand and its minimum, within its maximum."""
        demand = self.models[model]
        needed = math.ceil(demand.num_replicas - EPSILON)
        return min(max(needed, demand.constraints.min_replicas), demand.constraints.max_replicas)

    def violations(self, placement: Placement) -> list[str]:
        """What the placement breaks of what is hard; empty for each placement that may be used."""
        allowed = {spot for spots in self.spots.values() for spot in spots}
        found = [
            f"{spot} is not allowed" for spot, count in placement.replicas.items() if count and spot not in allowed
        ]
        used = self.used({spot: count for spot, count in placement.replicas.items() if spot in allowed})
        found += [
            f"{pool} has {self.capacity[pool]} and {count} are used"
            for pool, count in used.items()
            if count > self.capacity[pool]
        ]
        total: dict[str, int] = defaultdict(int)
        at_site: dict[tuple[str, str], float] = defaultdict(float)
        for spot, count in placement.replicas.items():
            total[spot.model] += count
            at_site[spot.model, spot.site_id] += count
            if spot.site_id in self.frozen and count != self.carried.get(spot, 0):
                found.append(f"{spot} is silent and was changed")
        found += [f"{m} has {n} replicas" for m, n in total.items() if n > self.models[m].constraints.max_replicas]
        for flow, amount in placement.flows.items():
            at_site[flow.model, flow.site_id] -= amount
        found += [f"{where} serves more than its replicas can" for where, left in at_site.items() if left < -1e-4]
        if self.stops(placement.replicas) > self.weights.max_stops:
            found.append(f"{self.stops(placement.replicas)} replicas stop")
        return found

    def _spots(self, demand: ModelDemand) -> tuple[Spot, ...]:
        return tuple(
            Spot(demand.model, site.site_id, item.accelerator)
            for site in self.sites.values()
            if demand.constraints.allows(site.region)
            for item in site.capacities
            if 0 < demand.constraints.units.get(item.accelerator, 0) <= item.num_units
        )

    def _carry(self, snapshot: Snapshot) -> dict[Spot, int]:
        """What runs and may stay: within locks, capacity and maximum, so that to stop nothing is always allowed."""
        before: dict[Spot, int] = defaultdict(int)
        planned = snapshot.previous.site_ids if snapshot.previous else ()
        for item in snapshot.previous.assignments if snapshot.previous else ():
            before[Spot(item.model, item.site_id, item.accelerator)] += item.num_replicas
        for site in self.sites.values():
            if site.site_id not in planned:  # back after it was lost: it kept its replicas, and they serve
                for run in site.running:
                    before[Spot(run.model, site.site_id, run.accelerator)] += run.num_replicas
        left = dict(self.capacity)
        carried: dict[Spot, int] = {}
        for name, spots in self.spots.items():
            room = self.models[name].constraints.max_replicas
            for spot in spots:
                pool, units = Pool(spot.site_id, spot.accelerator), self.units(spot)
                count = min(before.get(spot, 0), left[pool] // units, room)
                if count > 0:
                    carried[spot] = count
                    left[pool] -= count * units
                    room -= count
        return carried
