"""Places replicas by distance, without a solver: always feasible, always in time, the floor that the solver must beat."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

from sixfold.scaling.hub.model import ModelDemand
from sixfold.scaling.hub.problem import EPSILON, Flow, Placement, Pool, Problem, Spot
from sixfold.scaling.hub.score import score


def place_greedily(problem: Problem) -> Placement:
    """The better of two placements: each model as near as there is room, or what runs and only what is missing.

    The second keeps plans still: a move happens only where it pays for itself.
    """
    tried = [_Run(problem, keep=keep).place() for keep in (True, False)]
    return min(tried, key=lambda placement: score(problem, placement).total)


def assign_flows(problem: Problem, demand: ModelDemand, replicas: Mapping[Spot, int]) -> dict[Flow, float]:
    """Serves a model's demand from its replicas, the shortest ways first; what has no room is left out."""
    room = {spot: replicas.get(spot, 0) for spot in problem.spots[demand.model]}
    flows: dict[Flow, float] = defaultdict(float)
    for (origin, spot), amount in _waterfall(problem, demand, room, _open_demand(demand)).items():
        flows[Flow(demand.model, origin, spot.site_id)] += amount
    return dict(flows)


def _open_demand(demand: ModelDemand) -> dict[str, float]:
    return {load.origin: load.num_replicas for load in demand.loads}


def _waterfall(
    problem: Problem, demand: ModelDemand, room: Mapping[Spot, int], open_demand: dict[str, float]
) -> dict[tuple[str, Spot], float]:
    """Fills the nearest spots first; takes what it serves off ``open_demand``."""
    left = {spot: float(count) for spot, count in room.items() if count > 0}
    ways = sorted(
        (problem.latency_s(origin, spot.site_id), problem.hourly_price(spot), origin, spot)
        for origin in open_demand
        for spot in left
    )
    served: dict[tuple[str, Spot], float] = {}
    for _, _, origin, spot in ways:
        amount = min(open_demand[origin], left[spot])
        if amount > EPSILON:
            served[origin, spot] = amount
            open_demand[origin] -= amount
            left[spot] -= amount
    return served


class _Run:
    """One pass. Starts from what is carried, so that it can stop at any point and be feasible."""

    def __init__(self, problem: Problem, *, keep: bool) -> None:
        self._problem = problem
        self._keep = keep
        self._replicas = dict(problem.carried)
        used = problem.used(problem.carried)
        self._free = {pool: count - used.get(pool, 0) for pool, count in problem.capacity.items()}
        self._stops_left = problem.weights.max_stops

    def place(self) -> Placement:
        by_importance = sorted(
            self._problem.models.values(),
            key=lambda demand: (-demand.constraints.priority, -demand.num_replicas, demand.model),
        )
        for demand in by_importance:
            self._place_model(demand)
        for demand in by_importance:
            self._spread(demand)
        placement = Placement({spot: count for spot, count in self._replicas.items() if count})
        for demand in by_importance:
            placement.flows.update(assign_flows(self._problem, demand, placement.replicas))
        return placement

    def _place_model(self, demand: ModelDemand) -> None:
        room = {spot: self._room(spot) for spot in self._problem.spots[demand.model]}
        ideal = self._round(demand, self._ideal(demand, room), room)
        starts = {spot: count - self._now(spot) for spot, count in ideal.items() if count > self._now(spot)}
        excess = {spot: self._now(spot) - count for spot, count in ideal.items() if count < self._now(spot)}
        allowed = min(self._stops_left, sum(excess.values()))
        # What may not stop yet serves in place of what would start.
        unneeded = sum(excess.values()) - allowed
        for spot in self._by_distance(demand, reverse=True):
            stopped = min(allowed, excess.get(spot, 0))
            allowed -= stopped
            self._stops_left -= stopped
            self._change(spot, -stopped)
            cut = min(unneeded, starts.get(spot, 0))
            unneeded -= cut
            self._change(spot, starts.get(spot, 0) - cut)

    def _ideal(self, demand: ModelDemand, room: Mapping[Spot, int]) -> dict[Spot, float]:
        """Load of each spot if replicas were divisible."""
        open_demand = _open_demand(demand)
        load: dict[Spot, float] = defaultdict(float)
        running = {spot: self._now(spot) for spot in room}
        rest = {spot: count - running[spot] for spot, count in room.items()}
        for part in (running, rest) if self._keep else (room,):
            for (_, spot), amount in _waterfall(self._problem, demand, part, open_demand).items():
                load[spot] += amount
        return load

    def _round(self, demand: ModelDemand, load: Mapping[Spot, float], room: Mapping[Spot, int]) -> dict[Spot, int]:
        """Whole replicas of the same sum, rounded up over all and not at each spot; those that run come first."""
        counts = {spot: math.floor(load.get(spot, 0.0) + EPSILON) for spot in room}
        for spot in room:
            if spot.site_id in self._problem.frozen:
                counts[spot] = self._now(spot)
        missing = self._problem.wanted(demand.model) - sum(counts.values())
        distance = {spot: place for place, spot in enumerate(self._by_distance(demand))}

        def preference(spot: Spot) -> tuple[bool, float, int]:
            return (counts[spot] >= self._now(spot), -(load.get(spot, 0.0) - counts[spot]), distance[spot])

        order = sorted(room, key=preference)
        for spot in self._by_distance(
            demand, reverse=True
        ):  # too many for the maximum, or beside those of silent sites
            surplus = 0 if spot.site_id in self._problem.frozen else min(counts[spot], max(0, -missing))
            counts[spot] -= surplus
            missing += surplus
        while missing > 0:
            before = missing
            for spot in order:
                if missing > 0 and counts[spot] < room[spot]:
                    counts[spot] += 1
                    missing -= 1
            if missing == before:
                break
        return counts

    def _spread(self, demand: ModelDemand) -> None:
        """Adds replicas for `Constraints.min_sites` and `Constraints.survive_share` where there is room."""
        limits, sites = demand.constraints, self._problem.sites
        order = self._by_distance(demand)
        for spot in order:
            hosting = {other.site_id for other in order if self._now(other)}
            if len(hosting) < limits.min_sites and spot.site_id not in hosting:
                self._add_one(demand, (spot,))
        needed = limits.survive_share * demand.num_replicas
        for domain in sorted({site.domain for site in sites.values()}) if needed > EPSILON else ():
            outside = [spot for spot in order if sites[spot.site_id].domain != domain]
            while sum(map(self._now, outside)) < needed - EPSILON and self._add_one(demand, outside):
                pass

    def _add_one(self, demand: ModelDemand, spots: list[Spot] | tuple[Spot, ...]) -> bool:
        total = sum(map(self._now, self._problem.spots[demand.model]))
        if total >= demand.constraints.max_replicas:
            return False
        for spot in spots:
            if self._room(spot) > self._now(spot):
                self._change(spot, 1)
                return True
        return False

    def _now(self, spot: Spot) -> int:
        return self._replicas.get(spot, 0)

    def _room(self, spot: Spot) -> int:
        """Replicas that the spot could have, with all other spots as they are."""
        if spot.site_id in self._problem.frozen:
            return self._now(spot)
        return self._now(spot) + self._free[Pool(spot.site_id, spot.accelerator)] // self._problem.units(spot)

    def _change(self, spot: Spot, count: int) -> None:
        if count:
            self._replicas[spot] = self._now(spot) + count
            self._free[Pool(spot.site_id, spot.accelerator)] -= count * self._problem.units(spot)

    def _by_distance(self, demand: ModelDemand, *, reverse: bool = False) -> list[Spot]:
        """The model's spots, nearest to its clients first."""

        def key(spot: Spot) -> tuple[float, float, Spot]:
            far = sum(load.num_replicas * self._problem.latency_s(load.origin, spot.site_id) for load in demand.loads)
            return (far, self._problem.hourly_price(spot), spot)

        return sorted(self._problem.spots[demand.model], key=key, reverse=reverse)
