"""Says in words why each replica is where it is, and which constraint keeps a model from something better."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from sixfold.scaling.hub.model import ModelDemand, Note
from sixfold.scaling.hub.problem import EPSILON, Placement, Pool, Problem, Spot


class Explanation:
    """The reasons of one placement.

    Args:
        problem: What was asked.
        placement: What was decided.
    """

    def __init__(self, problem: Problem, placement: Placement) -> None:
        self._problem = problem
        self._placement = placement
        used = problem.used(placement.replicas)
        self._free = {pool: count - used.get(pool, 0) for pool, count in problem.capacity.items()}
        self._served: dict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
        self._sites: dict[tuple[str, str], list[str]] = defaultdict(list)
        for flow, amount in sorted(placement.flows.items()):
            if amount > EPSILON:
                self._served[flow.model, flow.site_id].append((flow.origin, amount))
                self._sites[flow.model, flow.origin].append(flow.site_id)
        self._all_stops_used = problem.stops(placement.replicas) >= problem.weights.max_stops

    def reason(self, spot: Spot) -> str:
        """Whom the replicas of a spot serve, and whether they ran there before."""
        ways = [
            f"{amount:.2f} from {origin} at {1000 * self._problem.latency_s(origin, spot.site_id):.0f} ms"
            for origin, amount in self._served[spot.model, spot.site_id]
        ]
        serves = f"serves {', '.join(ways)}" if ways else "spare: for a minimum, the spread or the loss of another site"
        count = self._placement.replicas[spot]
        kept = min(self._problem.carried.get(spot, 0), count)
        frozen = "; the site is silent, nothing changes there" if spot.site_id in self._problem.frozen else ""
        return f"{serves}; {kept} kept, {count - kept} started{frozen}"

    def notes(self) -> tuple[Note, ...]:
        """The constraints that bind, by model."""
        return tuple(
            Note(model=demand.model, text=text)
            for demand in sorted(self._problem.models.values(), key=lambda demand: demand.model)
            for text in self._model_notes(demand)
        )

    def _model_notes(self, demand: ModelDemand) -> Iterator[str]:
        name, limits = demand.model, demand.constraints
        spots = self._problem.spots[name]
        if not spots and demand.num_replicas > EPSILON:
            yield self._no_spot(demand)
            return
        total = sum(self._placement.replicas.get(spot, 0) for spot in spots)
        unserved = demand.num_replicas - sum(
            amount for spot_site in {spot.site_id for spot in spots} for _, amount in self._served[name, spot_site]
        )
        if unserved > EPSILON:
            why = (
                "max_replicas is reached" if total >= limits.max_replicas else "no accelerator is free where it may run"
            )
            yield f"{unserved:.2f} replicas' worth of its demand are not served: {why}"
        yield from self._detours(demand)
        yield from self._shortfalls(demand, total)
        excess = total - self._problem.wanted(name)
        if excess > 0 and self._all_stops_used:
            yield f"{excess} more than wanted: this plan stops no more than {self._problem.weights.max_stops} replicas"

    def _detours(self, demand: ModelDemand) -> Iterator[str]:
        """Origins that are served from further than the nearest site, and what is in the way there."""
        for load in demand.loads:
            sites = self._sites[demand.model, load.origin]
            if not sites:
                continue
            worst = max(self._problem.latency_s(load.origin, site_id) for site_id in sites)
            for site_id, site in sorted(self._problem.sites.items()):
                latency_s = self._problem.latency_s(load.origin, site_id)
                if latency_s >= worst:
                    continue
                if not demand.constraints.allows(site.region):
                    yield f"its regions keep it out of {site_id}, which is nearer to {load.origin} ({1000 * latency_s:.0f} ms)"
                elif self._full(demand, site_id):
                    yield f"{site_id} is full: the rest of {load.origin} is served at up to {1000 * worst:.0f} ms"

    def _full(self, demand: ModelDemand, site_id: str) -> bool:
        spots = [spot for spot in self._problem.spots[demand.model] if spot.site_id == site_id]
        return bool(spots) and all(
            self._free[Pool(site_id, spot.accelerator)] < self._problem.units(spot) for spot in spots
        )

    def _shortfalls(self, demand: ModelDemand, total: int) -> Iterator[str]:
        limits = demand.constraints
        if total < limits.min_replicas:
            yield f"{total} of min_replicas {limits.min_replicas} have room"
        at_domain: dict[str, int] = defaultdict(int)
        hosting: set[str] = set()
        for spot in self._problem.spots[demand.model]:
            count = self._placement.replicas.get(spot, 0)
            at_domain[self._problem.sites[spot.site_id].domain] += count
            if count:
                hosting.add(spot.site_id)
        if len(hosting) < limits.min_sites:
            yield f"it runs at {len(hosting)} of min_sites {limits.min_sites}"
        needed = limits.survive_share * demand.num_replicas
        for domain, count in sorted(at_domain.items()):
            if total - count < needed - EPSILON:
                share = (total - count) / demand.num_replicas
                yield f"the loss of {domain} leaves room for {share:.0%} of its demand; {limits.survive_share:.0%} are asked for"

    def _no_spot(self, demand: ModelDemand) -> str:
        classes = ", ".join(sorted(demand.constraints.units)) or "none"
        regions = ", ".join(demand.constraints.regions) or "all"
        return f"no site may run it: it takes accelerators of class {classes} in regions {regions}; no site has enough"
