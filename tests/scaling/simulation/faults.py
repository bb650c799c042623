"""What happens to a simulated fleet: a seed's faults, the healing, and what must be true afterwards."""

import asyncio
from dataclasses import dataclass

import msgspec

from sixfold.scaling.hub.hub import PLAN_KEY
from sixfold.scaling.hub.model import Plan
from tests.quiet import quiet
from tests.scaling.simulation.fleet import DEMAND, HUBS, MODELS, SHIFTED, SITES, Bugs, Fleet
from tests.scaling.simulation.virtual_loop import VirtualLoop, run_virtually

CALM_S, FAULTS_S, HEALING_S, PROOF_S = 7.0, 26.0, 20.0, 5.0


@dataclass(frozen=True)
class Outcome:
    """What a seed showed."""

    seed: int
    broken: tuple[str, ...]
    events: tuple[str, ...]
    num_plans: int

    @property
    def story(self) -> str:
        return "\n".join((f"seed {self.seed}: {'; '.join(self.broken)}", *self.events))


def run_seed(seed: int, bugs: Bugs | None = None) -> Outcome:
    """One run; the same seed gives the same events."""
    with quiet("sixfold.scaling"):
        return run_virtually(lambda loop: _run(seed, loop, bugs or Bugs()))


async def _run(seed: int, loop: VirtualLoop, bugs: Bugs) -> Outcome:
    fleet = Fleet(seed, loop, bugs)
    fleet.start()
    await asyncio.sleep(CALM_S)
    ends_s = loop.time() + FAULTS_S
    while loop.time() < ends_s and not fleet.broken:
        _one_fault(fleet)
        await asyncio.sleep(fleet.rng.uniform(0.5, 5))
    fleet.network.heal()
    fleet.log("all faults end")
    for site in fleet.sites.values():
        site.disk.full = False
    for name in [*fleet.network.down]:
        _revive(fleet, name)
    if not fleet.broken:
        await asyncio.sleep(HEALING_S)
        await _prove(fleet)
    stored = await fleet.store.get(PLAN_KEY)
    num_plans = 0 if stored is None else msgspec.json.decode(stored.value, type=Plan).epoch
    return Outcome(seed, tuple(fleet.broken), tuple(fleet.events), num_plans)


def _one_fault(fleet: Fleet) -> None:
    rng, network = fleet.rng, fleet.network
    hub, site = rng.choice(HUBS), rng.choice(SITES)
    kind = rng.choice(
        [
            "cut hub",
            "cut hub",
            "cut store",
            "pause hub",
            "pause hub",
            "cut site",
            "kill hub",
            "kill hub",
            "kill agent",
            "lose site",
            "storm",
            "disk",
            "shift",
            "heal",
            "heal",
            "kill all hubs",
        ]
    )
    fleet.log(f"fault: {kind} ({hub}, {site})")
    if kind == "cut hub":
        network.part({hub}, set(rng.sample(SITES, rng.randint(1, 3))))
    elif kind == "pause hub":
        for _, store, _ in fleet.hubs.values():
            store.pause_s = rng.uniform(2, 12)
    elif kind == "cut store":
        network.part({hub}, {"store"})
    elif kind == "cut site":
        network.part({site}, {*HUBS, *(f"gw-{name}" for name in SITES if name != site)})
    elif kind == "storm":
        network.slow_s, network.loss = rng.choice([(0.5, 0.1), (4.0, 0.0), (8.0, 0.2)])
    elif kind == "shift":
        if fleet.shifts:
            demand = rng.choice([DEMAND, SHIFTED])
            for name, gateway in fleet.gateways.items():
                gateway.demand = dict(demand[name])
    elif kind == "disk":
        fleet.sites[site].disk.full = not fleet.sites[site].disk.full
    elif kind == "heal":
        network.heal()
        for name in [*network.down]:
            _revive(fleet, name)
    else:
        _kill(fleet, kind, hub, site)


def _kill(fleet: Fleet, kind: str, hub: str, site: str) -> None:
    for name in HUBS if kind == "kill all hubs" else (hub,) if kind == "kill hub" else (site,):
        if name in fleet.network.down:
            continue
        fleet.network.down.add(name)
        if name in HUBS:
            fleet.stop_hub(name)
        else:
            fleet.stop_agent(name)
            if kind == "lose site":
                fleet.sites[name].cluster.lose_all()


def _revive(fleet: Fleet, name: str) -> None:
    fleet.network.down.discard(name)
    fleet.log(f"{name} starts again")
    if name in HUBS:
        fleet.start_hub(name)
    else:
        fleet.start_agent(name)


async def _prove(fleet: Fleet) -> None:
    """Everything is well again: one plan everywhere, enough replicas, every request served at its first try."""
    for gateway in fleet.gateways.values():
        gateway.num_failed = gateway.num_refused = 0
    await asyncio.sleep(PROOF_S)
    stored = await fleet.store.get(PLAN_KEY)
    fleet.check(stored is not None, "there is no plan")
    plan = Plan() if stored is None else msgspec.json.decode(stored.value, type=Plan)
    fleet.check(set(plan.site_ids) == set(SITES), f"epoch {plan.epoch} counts only {plan.site_ids} in")
    for name, site in fleet.sites.items():
        behind = plan.epoch - site.agent.plan.epoch
        fleet.check(behind <= 1, f"{name} is {behind} epochs behind")
    for model in MODELS:
        needed = sum(gateway.demand.get(model, 0) for gateway in fleet.gateways.values())
        ready = sum(
            item.num_ready for site in fleet.sites.values() for item in site.cluster.held() if item.slot.model == model
        )
        fleet.check(ready >= needed, f"{ready} replicas of {model} are ready, {needed} are needed")
    for name, gateway in fleet.gateways.items():
        fleet.check(gateway.num_failed == 0, f"{gateway.num_failed} requests of gateway {name} fail")
