"""A whole fleet under faults, in one thread and in virtual time: three candidates, three sites, three gateways, one seed."""

import asyncio
import random
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from functools import partial

import msgspec

from sixfold.core.errors import NotReady
from sixfold.scaling.agent.agent import Agent
from sixfold.scaling.agent.georoute import routes_of
from sixfold.scaling.gateway.geography import RegionLocked
from sixfold.scaling.hub.fleet import FleetSettings, KnownSite
from sixfold.scaling.hub.hub import PLAN_KEY, Hub
from sixfold.scaling.hub.leader import LEADER_KEY
from sixfold.scaling.hub.messages import ReportAnswer, SiteReport
from sixfold.scaling.hub.model import Constraints, Latency, Plan, Snapshot, Weights
from sixfold.scaling.hub.placement import optimize
from sixfold.scaling.hub.store import Fence, Lease
from sixfold.scaling.route.router import ReplicaFacts
from tests.scaling.hub.memory_store import MemoryStore
from tests.scaling.simulation.network import Network, Unreachable
from tests.scaling.simulation.nodes import Disk, RemoteStore, SimulatedCluster, SimulatedGateway, make_agent
from tests.scaling.simulation.virtual_loop import VirtualLoop

SITES = ("eu", "us", "ap")
HUBS = ("hub-eu", "hub-us", "hub-ap")
MODELS = {
    "chat": Constraints(units={"h100": 1}, survive_share=0.5),
    "notes": Constraints(units={"h100": 2}, regions=("eu", "us"), min_sites=2),
}
DEMAND = {"eu": {"chat": 2.5, "notes": 0.5}, "us": {"chat": 1.5, "notes": 0.4}, "ap": {"chat": 1.0}}
SHIFTED = {"eu": {"chat": 0.5, "notes": 1.5}, "us": {"chat": 0.5, "notes": 1.6}, "ap": {"chat": 1.0}}
CAPACITY = {"eu": 5, "us": 5, "ap": 3}


@dataclass
class Bugs:
    """Bugs that are planted on purpose, to show that the invariants find them."""

    no_fencing: bool = False
    no_epoch_check: bool = False
    starts_before_stops: bool = False
    forgets_silent_sites: bool = False
    ignores_refusals: bool = False
    ignores_locks: bool = False
    gateways_ignore_locks: bool = False


class JudgedStore(MemoryStore):
    """A store that looks at what it takes: only the leader of the moment may write a plan."""

    def __init__(self, fleet: "Fleet", *, fencing: bool) -> None:
        super().__init__(fleet.loop.time, fencing=fencing)
        self._fleet = fleet

    async def put(
        self, key: str, value: bytes, *, expected: int, fence: Fence | None = None, lease: Lease | None = None
    ) -> int:
        leader, before = await self.get(LEADER_KEY), await self.get(PLAN_KEY)
        version = await super().put(key, value, expected=expected, fence=fence, lease=lease)
        if key == PLAN_KEY:
            plan = msgspec.json.decode(value, type=Plan)
            previous = Plan() if before is None else msgspec.json.decode(before.value, type=Plan)
            self._fleet.judge_plan(previous, plan, "" if leader is None else leader.value.decode())
        return version


@dataclass
class Site:
    """One site: its machines and its disk outlive its agent."""

    cluster: SimulatedCluster
    disk: Disk
    agent: Agent
    tasks: list[asyncio.Task[None]] = field(default_factory=list[asyncio.Task[None]])
    seen_epoch: int = 0


class Fleet:
    """The world of one seed. Faults are in `faults`; what must hold is checked here, all the time."""

    def __init__(self, seed: int, loop: VirtualLoop, bugs: Bugs) -> None:
        self.rng = random.Random(seed)
        self.loop, self.bugs = loop, bugs
        # Every other fleet has demand that shifts between models, and follows it fast: replicas of one stop for those of another.
        # In the rest demand stays, falls are held for longer than faults last, and so no plan may lose a replica that is needed.
        self.shifts = seed % 2 == 0
        self.events: list[str] = []
        self.broken: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.network = Network(self.rng)
        self.store = JudgedStore(self, fencing=not bugs.no_fencing)
        self.clocks = {name: self._skewed() for name in (*HUBS, *SITES)}
        self.hubs: dict[str, tuple[Hub, RemoteStore, asyncio.Task[None]]] = {}
        self.sites: dict[str, Site] = {}
        self.gateways = {
            name: SimulatedGateway(
                name, dict(DEMAND[name]), self.rng, self._skewed(), locks=not bugs.gateways_ignore_locks
            )
            for name in SITES
        }
        self.settings = FleetSettings(
            sites=tuple(KnownSite(site_id=name, region=name) for name in SITES),
            models={
                name: msgspec.structs.replace(limits, regions=() if bugs.ignores_locks else limits.regions)
                for name, limits in MODELS.items()
            },
            latencies=tuple(
                Latency(origin=a, site_id=b, latency_s=0.01 if a == b else 0.1) for a in SITES for b in SITES
            ),
            weights=Weights(max_stops=3),
            silent_after_s=3,
            lost_after_s=0.1 if bugs.forgets_silent_sites else 8,
            hold_s=1 if bugs.forgets_silent_sites or self.shifts else 60,
        )

    def _skewed(self) -> Callable[[], float]:
        """A monotonic clock with a rate and a start of its own."""
        rate, offset_s = self.rng.uniform(0.85, 1.15), self.rng.uniform(0, 10_000)
        return lambda: offset_s + rate * self.loop.time()

    def log(self, event: str) -> None:
        self.events.append(f"{self.loop.time() - 1000:8.3f} {event}")

    def check(self, holds: bool, sentence: str) -> None:
        if not holds:
            self.log(f"BROKEN {sentence}")
            self.broken.append(sentence)

    def start(self) -> None:
        for name in HUBS:
            self.start_hub(name)
        for name in SITES:
            cluster = SimulatedCluster(CAPACITY[name], self.rng, self.loop.time)
            disk = Disk()
            self.sites[name] = Site(cluster, disk, make_agent(name, cluster, disk, self.clocks[name]))
            self._run_agent(name)
        for name in SITES:
            self._spawn(self._gateway(name))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def start_hub(self, name: str) -> None:
        store = RemoteStore(name, self.network, self.store)
        hub = Hub(name, store, self.settings, self._optimize, clock=self.clocks[name], ttl_s=3, plan_every_s=3)
        self.hubs[name] = (hub, store, asyncio.ensure_future(hub.run()))

    async def _optimize(self, snapshot: Snapshot) -> Plan:
        plan = optimize(snapshot, deadline_s=0, solver=False)
        await asyncio.sleep(
            self.rng.uniform(0.05, 1.0 if self.rng.random() < 0.9 else 6.0)
        )  # the leader may change meanwhile
        return plan

    def stop_hub(self, name: str) -> None:
        _, store, task = self.hubs[name]
        store.dead = True
        task.cancel()

    def start_agent(self, name: str) -> None:
        site = self.sites[name]
        try:
            site.agent = make_agent(name, site.cluster, site.disk, self.clocks[name])
        except OSError:
            self.log(f"{name}: the agent cannot start, its disk is full")
            site.disk.full = False
            site.agent = make_agent(name, site.cluster, site.disk, self.clocks[name])
        self._run_agent(name)

    def stop_agent(self, name: str) -> None:
        for task in self.sites[name].tasks:
            task.cancel()
        self.sites[name].tasks.clear()

    def _run_agent(self, name: str) -> None:
        work = [self._step(name), *(self._report(name, hub) for hub in HUBS)]
        self.sites[name].tasks = [asyncio.ensure_future(one) for one in work]

    async def _step(self, name: str) -> None:
        site = self.sites[name]
        while True:
            if self.bugs.starts_before_stops:
                site.cluster.num_units, real = 10**6, site.cluster.num_units
                site.agent.step()
                site.cluster.num_units = real
            else:
                site.agent.step()
            self._judge_site(name)
            await asyncio.sleep(1)

    async def _report(self, name: str, hub: str) -> None:
        """Reports go to each candidate by themselves: one that is out of reach does not delay the others."""
        site = self.sites[name]
        while True:
            report = site.agent.report()
            try:
                answer = await self.network.call(name, hub, partial(self._hear, hub, report))
            except Unreachable:
                continue
            self._answer(name, answer)
            await asyncio.sleep(1)

    async def _hear(self, hub: str, report: SiteReport) -> ReportAnswer:
        return self.hubs[hub][0].hear(report)

    def _answer(self, name: str, answer: ReportAnswer) -> None:
        site = self.sites[name]
        if self.bugs.no_epoch_check and answer.plan is not None:
            earlier = Plan(epoch=answer.plan.epoch - 1)
            site.agent._standing = msgspec.structs.replace(site.agent._standing, plan=earlier)  # pyright: ignore[reportPrivateUsage]
        site.agent.answered(answer)
        self._judge_site(name)

    def _judge_site(self, name: str) -> None:
        site = self.sites[name]
        epoch = site.agent.plan.epoch
        self.check(epoch >= site.seen_epoch, f"{name} went from epoch {site.seen_epoch} back to {epoch}")
        if epoch > site.seen_epoch:
            self.log(f"{name} takes epoch {epoch}")
        site.seen_epoch = max(epoch, site.seen_epoch)
        used = site.cluster.num_used
        self.check(used <= CAPACITY[name], f"{name} uses {used} of {CAPACITY[name]} accelerators")
        for item in site.cluster.held():
            self.check(MODELS[item.slot.model].allows(name), f"{name} runs {item.slot.model} against its lock")

    def judge_plan(self, before: Plan, plan: Plan, leader: str) -> None:
        self.log(f"epoch {plan.epoch} by {plan.leader_id}: {_counts(plan)}")
        self.check(
            plan.leader_id == leader, f"{plan.leader_id} wrote epoch {plan.epoch} while {leader or 'nobody'} led"
        )
        self.check(plan.epoch > before.epoch, f"epoch {plan.epoch} follows {before.epoch}")
        for model in () if self.shifts else MODELS:
            wanted = -(-sum(loads.get(model, 0) for loads in DEMAND.values()) // 1)
            kept = sum(
                item.num_replicas
                for item in before.assignments
                if item.model == model and item.site_id in plan.site_ids
            )
            now = sum(item.num_replicas for item in plan.assignments if item.model == model)
            self.check(
                now >= min(kept, wanted), f"epoch {plan.epoch} loses {model}: {kept} become {now}, {wanted} are needed"
            )

    async def _gateway(self, name: str) -> None:
        gateway = self.gateways[name]
        while True:
            for site_id in SITES:
                self._spawn(self._visit(name, site_id))
            for model in (*gateway.demand, "notes"):  # a client may ask for what is locked elsewhere
                self._spawn(self._request(name, model))
            await asyncio.sleep(2)

    async def _visit(self, name: str, site_id: str) -> None:
        """Tells a site the load, and takes its plan."""
        gateway, site = self.gateways[name], self.sites[site_id]
        report = gateway.load_report(site_id, home=name == site_id)

        async def exchange() -> Plan:
            site.agent.hear(report)
            return site.agent.plan

        try:
            plan = await self.network.call(f"gw-{name}", site_id, exchange)
        except Unreachable:
            return
        before = gateway.geography.plan.epoch
        gateway.geography.offer(plan)
        self.check(gateway.geography.plan.epoch >= before, f"gateway {name} went back from epoch {before}")

    async def _request(self, name: str, model: str) -> None:
        gateway, geography = self.gateways[name], self.gateways[name].geography
        try:
            geography.check((model,))
        except RegionLocked:
            return
        except NotReady:  # no plan was heard of yet
            gateway.num_failed += 1
            return
        self.check(MODELS[model].allows(name), f"gateway {name} takes {model}, whose data may not be there")
        journey = geography.enter((model,), name)
        tried: set[str] = set()
        while candidates := self._candidates(name, model, tried):
            site_id = geography.prefer(journey, None, candidates)[0].site
            self.check(MODELS[model].allows(site_id), f"gateway {name} sends {model} to {site_id} against its lock")
            tried.add(site_id)
            try:
                served = await self.network.call(f"gw-{name}", site_id, partial(self._serve, site_id, model))
            except Unreachable:
                served = False
            if served:
                break
            gateway.num_refused += 1
            gateway.refused_s[model, site_id] = self.loop.time()
            if not self.bugs.ignores_refusals:
                geography.lost(journey)
                geography.refused(journey)
            self._judge_refusal(name, model, site_id)
        else:
            gateway.num_failed += 1
        geography.leave(journey)

    def _candidates(self, name: str, model: str, tried: Collection[str]) -> list[ReplicaFacts]:
        geography = self.gateways[name].geography
        sites = {route.site_id for route in routes_of(geography.plan, model, name)} - set(tried)
        return [
            ReplicaFacts(replica_id=site, region=site, site=site)
            for site in sorted(sites)
            if geography.permits((model,), site)
        ]

    def _judge_refusal(self, name: str, model: str, site_id: str) -> None:
        """Another client, at this moment, is sent elsewhere, as long as there is somebody who did not refuse lately."""
        gateway, candidates = self.gateways[name], self._candidates(name, model, ())
        lately_s = self.loop.time() - 4
        if all(gateway.refused_s.get((model, each.site), 0.0) > lately_s for each in candidates):
            return
        other = gateway.geography.enter((model,), name)
        again = gateway.geography.prefer(other, None, candidates)[0].site
        gateway.geography.leave(other)
        self.check(again != site_id, f"gateway {name} would ask {site_id} again, which just refused {model}")

    async def _serve(self, site_id: str, model: str) -> bool:
        served = self.sites[site_id].agent.admits(model)
        if served:
            self.check(MODELS[model].allows(site_id), f"{site_id} serves {model} against its lock")
        return served


def _counts(plan: Plan) -> str:
    placed = " ".join(f"{item.model}@{item.site_id}={item.num_replicas}" for item in plan.assignments)
    return f"[{' '.join(plan.site_ids)}] {placed}"
