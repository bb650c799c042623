"""The parts of a plan that follow from a placement: bounds for the sites' autoscalers, and shares for the gateways."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping

from sixfold.scaling.hub.model import ANY_ORIGIN, Assignment, Lock, ModelDemand, PlannedLoad, Route
from sixfold.scaling.hub.problem import EPSILON, Flow, Placement, Pool, Problem, Spot


def assignments(problem: Problem, placement: Placement, reason: Callable[[Spot], str]) -> tuple[Assignment, ...]:
    """What each site runs, with the bounds between which it scales alone."""
    ceilings = _ceilings(problem, placement)
    return tuple(
        Assignment(
            model=spot.model,
            site_id=spot.site_id,
            accelerator=spot.accelerator,
            units=problem.units(spot),
            num_replicas=count,
            floor=min(count, max(1, math.ceil(count * problem.weights.floor_share - EPSILON))),
            ceiling=ceilings[spot],
            reason=reason(spot),
        )
        for spot, count in sorted(placement.replicas.items())
        if count
    )


def _ceilings(problem: Problem, placement: Placement) -> dict[Spot, int]:
    """Hands out what is free at each site, one replica a turn, the busiest models first.

    The ceilings fit the site together: all its models may reach theirs at once while the hub is gone, and no accelerator is
    promised twice. A model's ceilings stay within its maximum for the same reason: sites do not ask each other.
    """
    ceilings = {spot: count for spot, count in placement.replicas.items() if count}
    used = problem.used(ceilings)
    free = {pool: count - used.get(pool, 0) for pool, count in problem.capacity.items()}
    room = {name: demand.constraints.max_replicas for name, demand in problem.models.items()}
    for spot, count in ceilings.items():
        room[spot.model] -= count
    most = {spot: math.floor(count * problem.weights.ceiling_share) for spot, count in ceilings.items()}
    growing = sorted(ceilings, key=lambda spot: (-problem.models[spot.model].num_replicas, spot))
    while growing:
        still: list[Spot] = []
        for spot in growing:
            pool, units = Pool(spot.site_id, spot.accelerator), problem.units(spot)
            if (
                spot.site_id not in problem.frozen
                and free[pool] >= units
                and room[spot.model] > 0
                and ceilings[spot] < most[spot]
            ):
                ceilings[spot] += 1
                free[pool] -= units
                room[spot.model] -= 1
                still.append(spot)
        growing = still
    return ceilings


def routes(problem: Problem, placement: Placement) -> tuple[Route, ...]:
    """For each model and origin every site that runs it, with the origin's shares."""
    replicas: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for spot, count in placement.replicas.items():
        if count:
            replicas[spot.model][spot.site_id] += count
    found: list[Route] = []
    for name, at_site in sorted(replicas.items()):
        demand = problem.models[name]
        for origin in (*sorted(load.origin for load in demand.loads), ANY_ORIGIN):
            shares = _shares(problem, placement, demand, origin, at_site)
            found += [
                Route(
                    model=name,
                    origin=origin,
                    site_id=site_id,
                    weight=round(share, 6),
                    latency_s=problem.latency_s(origin, site_id),
                )
                for site_id, share in sorted(shares.items())
            ]
    return tuple(found)


def _shares(
    problem: Problem, placement: Placement, demand: ModelDemand, origin: str, at_site: Mapping[str, int]
) -> dict[str, float]:
    amounts = {site_id: placement.flows.get(Flow(demand.model, origin, site_id), 0.0) for site_id in at_site}
    if origin == ANY_ORIGIN:
        amounts = {site_id: float(count) for site_id, count in at_site.items()}
    elif sum(amounts.values()) <= EPSILON:
        nearest = min(at_site, key=lambda site_id: (problem.latency_s(origin, site_id), site_id))
        amounts[nearest] = 1.0
    total = sum(amounts.values())
    shares = {site_id: amount / total for site_id, amount in amounts.items()}
    least = min(demand.constraints.min_site_share, 1.0 / len(shares))
    # Shares below the least are raised to it, and what the others have above it shrinks alike: the sum stays 1.
    missing = sum(max(0.0, least - share) for share in shares.values())
    above = sum(max(0.0, share - least) for share in shares.values())
    shrink = missing / above if above > EPSILON else 0.0
    return {site_id: max(least, share - shrink * max(0.0, share - least)) for site_id, share in shares.items()}


def locks(problem: Problem) -> tuple[Lock, ...]:
    """The region locks of all models, also of those that nothing runs."""
    return tuple(
        Lock(model=name, regions=tuple(sorted(demand.constraints.regions)))
        for name, demand in sorted(problem.models.items())
        if demand.constraints.regions
    )


def loads(problem: Problem) -> tuple[PlannedLoad, ...]:
    """The demand that was to be served."""
    return tuple(
        PlannedLoad(model=name, origin=load.origin, num_replicas=round(load.num_replicas, 6))
        for name, demand in sorted(problem.models.items())
        for load in demand.loads
    )
