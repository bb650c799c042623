"""Snapshots that several tests of the hub use."""

import random

from sixfold.scaling.hub.model import (
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


def site(
    name: str, num_units: int, *, region: str | None = None, accelerator: str = "h100", state: str = "live"
) -> Site:
    capacity = Capacity(accelerator=accelerator, num_units=num_units, price_per_hour=2.0)
    return Site(site_id=name, region=region or name, capacities=(capacity,), state=state)


def demand(name: str, constraints: Constraints | None = None, **loads: float) -> ModelDemand:
    origins = tuple(OriginLoad(origin=origin, num_replicas=load) for origin, load in loads.items())
    return ModelDemand(model=name, constraints=constraints or Constraints(units={"h100": 1}), loads=origins)


def near_and_far(*models: ModelDemand, near: int = 8, far: int = 20, previous: Plan | None = None) -> Snapshot:
    """Two regions; each is 10 ms from its own clients and 90 ms from the other's."""
    ways = [("eu", "eu", 0.01), ("eu", "us", 0.09), ("us", "us", 0.01), ("us", "eu", 0.09)]
    latencies = tuple(Latency(origin=origin, site_id=at, latency_s=s) for origin, at, s in ways)
    return Snapshot(sites=(site("eu", near), site("us", far)), models=models, latencies=latencies, previous=previous)


def random_snapshot(
    seed: int, *, num_sites: int, num_models: int, units: int, previous: Plan | None = None
) -> Snapshot:
    """A fleet with everything in it: two classes, locks, spread, survival, domains, priorities."""
    rng = random.Random(seed)
    regions = [f"r{index}" for index in range(max(1, num_sites // 3))]
    sites = tuple(
        Site(
            site_id=f"s{index:02}",
            region=regions[index % len(regions)],
            failure_domain=f"d{index // 2}" if rng.random() < 0.3 else "",
            capacities=tuple(
                Capacity(accelerator=name, num_units=rng.randint(0, units), price_per_hour=price)
                for name, price in (("h100", 3.0), ("l40s", 1.0))
            ),
        )
        for index in range(num_sites)
    )
    latencies = tuple(
        Latency(origin=region, site_id=at.site_id, latency_s=0.01 if region == at.region else rng.uniform(0.03, 0.2))
        for region in regions
        for at in sites
    )
    models = tuple(_random_model(rng, f"m{index:03}", regions) for index in range(num_models))
    return Snapshot(sites=sites, models=models, latencies=latencies, previous=previous, weights=Weights(max_stops=10))


def _random_model(rng: random.Random, name: str, regions: list[str]) -> ModelDemand:
    origins = rng.sample(regions, rng.randint(1, min(3, len(regions))))
    locked = rng.random() < 0.3
    constraints = Constraints(
        units=rng.choice([{"h100": 1}, {"h100": 2, "l40s": 4}, {"l40s": 1}, {"h100": 1, "l40s": 1}]),
        regions=tuple(rng.sample(regions, rng.randint(1, len(regions)))) if locked else (),
        min_replicas=rng.choice([0, 0, 1, 2]),
        max_replicas=rng.choice([4, 50, 1000]),
        min_sites=rng.choice([0, 0, 2]),
        survive_share=rng.choice([0.0, 0.0, 0.6]),
        min_site_share=rng.choice([0.0, 0.1]),
        priority=rng.choice([1.0, 1.0, 5.0]),
    )
    loads = tuple(
        OriginLoad(origin=origin, num_replicas=rng.choice([0.0, 0.3, rng.uniform(0, 12)])) for origin in origins
    )
    return ModelDemand(model=name, constraints=constraints, loads=loads)
