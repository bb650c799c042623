"""What the hub knows and what it decides: sites, demand, constraints, and the plan that sites and gateways follow."""

from __future__ import annotations

import msgspec

ANY_ORIGIN = "*"
"""The origin of a route that holds for clients of an origin which the plan does not know."""

LIVE = "live"
SILENT = "silent"
LOST = "lost"


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """The accelerators of one class at a site.

    Attributes:
        accelerator: The class, e.g. ``h100``.
        num_units: How many there are, used or free.
        price_per_hour: What one costs while a replica holds it.
    """

    accelerator: str
    num_units: int
    price_per_hour: float = 1.0


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """One cluster, as the hub sees it now.

    Attributes:
        site_id: Its name, unique.
        region: What region locks name.
        failure_domain: Sites of one domain are taken to fail together; the site alone where empty.
        capacities: Its accelerators, by class.
        state: `LIVE`: plan freely. `SILENT`: not heard of for a moment, its replicas stay as they are. `LOST`: counted out.
        running: Replicas that the site said it runs; looked at when it returns after it was lost.
    """

    site_id: str
    region: str
    failure_domain: str = ""
    capacities: tuple[Capacity, ...] = ()
    state: str = LIVE
    running: tuple[Running, ...] = ()

    @property
    def domain(self) -> str:
        """What fails with it."""
        return self.failure_domain or self.site_id


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """Replicas of a model that hold accelerators of one class at a site, ready or starting."""

    model: str
    accelerator: str
    num_replicas: int


class OriginLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Demand for a model from the clients of one place.

    Attributes:
        origin: The region or site whose gateways the clients reach.
        num_replicas: What they keep busy, in replicas at their target utilization; fractional.
    """

    origin: str
    num_replicas: float


class Constraints(msgspec.Struct, frozen=True, kw_only=True):
    """What must hold for a model. Locks, capacity and the bounds are hard; the rest costs a penalty where it cannot be had.

    Attributes:
        units: Accelerators that one replica takes, by class; a replica may run on any class named here.
        regions: Regions that its data may enter; empty allows all. Hard, for replicas and for routes.
        min_replicas: Fewest replicas, over all sites; soft, as there may be no room.
        max_replicas: Most replicas, over all sites; hard.
        min_sites: It should run at so many sites; soft.
        survive_share: Share of its demand that should still be served when any one failure domain is lost; soft.
        min_site_share: Each site that runs it gets at least this share of every origin's requests: active-active.
        priority: Weight of its unserved demand against other models'.
    """

    units: dict[str, int]
    regions: tuple[str, ...] = ()
    min_replicas: int = 0
    max_replicas: int = 1_000_000
    min_sites: int = 0
    survive_share: float = 0.0
    min_site_share: float = 0.0
    priority: float = 1.0

    def allows(self, region: str) -> bool:
        """Whether data may enter the region."""
        return not self.regions or region in self.regions


class ModelDemand(msgspec.Struct, frozen=True, kw_only=True):
    """One model: what is asked of it, from where, and what must hold."""

    model: str
    constraints: Constraints
    loads: tuple[OriginLoad, ...] = ()

    @property
    def num_replicas(self) -> float:
        """Demand from everywhere."""
        return sum(load.num_replicas for load in self.loads)


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Time that a request's way from an origin to a site adds, there and back."""

    origin: str
    site_id: str
    latency_s: float


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub weighs against each other, in the currency of the prices, per hour.

    Attributes:
        latency_per_s: What a second of added latency costs for the traffic of one replica.
        unknown_latency_s: Latency of an origin and a site elsewhere that nobody measured.
        move: What it costs to stop a replica that could stay.
        unserved: What it costs to leave the demand of one replica of priority 1 unserved.
        survival: What each replica costs that is missing to survive the loss of a failure domain.
        spread: What each site costs that is missing to `Constraints.min_sites`.
        max_stops: Most replicas that one plan stops although they could stay; forced stops are not counted.
        floor_share: Share of the planned replicas below which a site's own autoscaler never goes.
        ceiling_share: Share of the planned replicas up to which it goes where the site has room.
    """

    latency_per_s: float = 10.0
    unknown_latency_s: float = 0.2
    move: float = 0.5
    unserved: float = 1000.0
    survival: float = 50.0
    spread: float = 20.0
    max_stops: int = 20
    floor_share: float = 0.5
    ceiling_share: float = 2.0


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All that a plan is computed from."""

    sites: tuple[Site, ...]
    models: tuple[ModelDemand, ...]
    latencies: tuple[Latency, ...] = ()
    previous: Plan | None = None
    weights: Weights = Weights()


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """The replicas of a model at a site on one class of accelerators.

    Attributes:
        model: The model.
        site_id: The site.
        accelerator: The class that they hold.
        units: Accelerators that each of them holds.
        num_replicas: How many the hub wants now.
        floor: Fewest that the site's own autoscaler may go down to.
        ceiling: Most that it may go up to. The ceilings of all models fit the site together.
        reason: Why they are there.
    """

    model: str
    site_id: str
    accelerator: str
    units: int
    num_replicas: int
    floor: int
    ceiling: int
    reason: str = ""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """How gateways of an origin reach a model at one site.

    Attributes:
        model: The model.
        origin: Of the clients, or `ANY_ORIGIN`.
        site_id: A site that runs the model.
        weight: Share of the origin's requests; the shares of all sites make 1. 0: only when nearer sites are full.
        latency_s: Added latency; spill-over goes to the nearest that has room.
    """

    model: str
    origin: str
    site_id: str
    weight: float
    latency_s: float


class Lock(msgspec.Struct, frozen=True, kw_only=True):
    """Regions that a model's data may enter; sites and who routes by `georoute` hold it, whatever a plan says."""

    model: str
    regions: tuple[str, ...]


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """One sentence that explains a model's placement: a constraint that binds, or demand that is not served."""

    model: str
    text: str


class PlannedLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Demand that a plan was made for; what a candidate that starts anew remembers instead of its own past."""

    model: str
    origin: str
    num_replicas: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A decision of the hub. Of two plans the one with the higher epoch holds.

    Attributes:
        epoch: Rises with each plan that the store took.
        leader_id: Who wrote it.
        site_ids: Sites that it plans for. A site that is missing here was lost: it keeps what it has.
        assignments: Replicas, by model, site and class.
        routes: Shares of requests, by model and origin.
        locks: Region locks, of locked models only.
        loads: Demand that it serves.
        notes: Why it is not better.
        solver: ``milp`` or ``greedy``.
        objective: Its cost per hour with all penalties; smaller is better.
    """

    epoch: int = 0
    leader_id: str = ""
    site_ids: tuple[str, ...] = ()
    assignments: tuple[Assignment, ...] = ()
    routes: tuple[Route, ...] = ()
    locks: tuple[Lock, ...] = ()
    loads: tuple[PlannedLoad, ...] = ()
    notes: tuple[Note, ...] = ()
    solver: str = ""
    objective: float = 0.0

    def at(self, site_id: str) -> tuple[Assignment, ...]:
        """The assignments of one site."""
        return tuple(assignment for assignment in self.assignments if assignment.site_id == site_id)

    def allows(self, model: str, region: str) -> bool:
        """Whether the model's data may enter the region."""
        return all(region in lock.regions for lock in self.locks if lock.model == model)
