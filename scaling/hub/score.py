"""What a placement costs, in money and in penalties: the one measure by which solvers are compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from sixfold.scaling.hub.problem import Placement, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The parts of a placement's cost per hour.

    Attributes:
        price: Of the accelerators in use.
        latency: Of the added latency.
        moves: Of the replicas that stop although they could stay.
        unserved: Of demand, or of a minimum of replicas, that has no room.
        survival: Of what is missing to survive a failure domain.
        spread: Of the sites that are missing.
    """

    price: float = 0.0
    latency: float = 0.0
    moves: float = 0.0
    unserved: float = 0.0
    survival: float = 0.0
    spread: float = 0.0

    @property
    def total(self) -> float:
        """All together."""
        return self.price + self.latency + self.moves + self.unserved + self.survival + self.spread


def score(problem: Problem, placement: Placement, models: Iterable[str] | None = None) -> Score:
    """The cost of the given models, or of all; each model's cost depends on its own replicas and flows alone."""
    names = list(problem.models) if models is None else list(models)
    chosen, weights = frozenset(names), problem.weights
    at_domain: dict[tuple[str, str], int] = defaultdict(int)
    sites: dict[str, set[str]] = defaultdict(set)
    total: dict[str, int] = defaultdict(int)
    served: dict[str, float] = defaultdict(float)
    price = latency = 0.0
    for spot, count in placement.replicas.items():
        if spot.model in chosen and count:
            price += count * problem.hourly_price(spot)
            total[spot.model] += count
            at_domain[spot.model, problem.sites[spot.site_id].domain] += count
            sites[spot.model].add(spot.site_id)
    for flow, amount in placement.flows.items():
        if flow.model in chosen:
            served[flow.model] += amount
            latency += amount * weights.latency_per_s * problem.latency_s(flow.origin, flow.site_id)
    unserved = survival = spread = 0.0
    domains = {site.domain for site in problem.sites.values()}
    for name in names:
        demand = problem.models[name]
        limits = demand.constraints
        short = max(0, limits.min_replicas - total[name])
        unserved += weights.unserved * limits.priority * (max(0.0, demand.num_replicas - served[name]) + short)
        spread += weights.spread * max(0, limits.min_sites - len(sites[name]))
        needed = limits.survive_share * demand.num_replicas
        if needed > 0:
            left = (total[name] - at_domain[name, domain] for domain in domains)
            survival += weights.survival * sum(max(0.0, needed - count) for count in left)
    moves = weights.move * problem.stops(placement.replicas, names)
    return Score(price=price, latency=latency, moves=moves, unserved=unserved, survival=survival, spread=spread)
