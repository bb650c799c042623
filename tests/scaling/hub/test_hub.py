"""A candidate plans only what it can see, and takes silence for silence: neither for a loss nor for a lack of demand."""

import asyncio

import msgspec
import pytest

from sixfold.core.errors import InvalidRequest, NotReady
from sixfold.scaling.hub.fleet import FleetSettings, FleetView, KnownSite
from sixfold.scaling.hub.hub import PLAN_KEY, Hub
from sixfold.scaling.hub.messages import ReportAnswer, SiteLoad, SiteReport
from sixfold.scaling.hub.model import LIVE, LOST, SILENT, Capacity, Constraints, Plan, Running, Snapshot
from sixfold.scaling.hub.placement import optimize
from sixfold.scaling.hub.service import hub_routes
from tests.fakes import FakeClock
from tests.scaling.hub.memory_store import MemoryStore
from tests.scaling.simulation.virtual_loop import VirtualLoop, run_virtually

FLEET = FleetSettings(
    sites=tuple(KnownSite(site_id=name, region=name, prices={"h100": 3.0}) for name in ("eu", "us", "ap")),
    models={"chat": Constraints(units={"h100": 1})},
    silent_after_s=6,
    lost_after_s=20,
    hold_s=60,
)


def report(site_id: str, sequence: int, *, load: float = 0.0, incarnation: int = 1, epoch: int = 0) -> SiteReport:
    return SiteReport(
        site_id=site_id,
        incarnation=incarnation,
        sequence=sequence,
        epoch=epoch,
        capacities=(Capacity(accelerator="h100", num_units=8),),
        loads=(SiteLoad(model="chat", origin=site_id, num_replicas=load),),
    )


async def place(snapshot: Snapshot) -> Plan:
    return optimize(snapshot, deadline_s=0, solver=False)


def replicas(plan: Plan | None) -> dict[str, int]:
    assert plan is not None
    return {item.site_id: item.num_replicas for item in plan.assignments}


def states(view: FleetView, now_s: float) -> list[str]:
    return [view.state(name, now_s) for name in ("eu", "us", "ap")]


def test_a_site_is_silent_before_it_is_lost_also_for_a_candidate_that_just_started() -> None:
    view = FleetView(FLEET, 0.0)
    view.hear(report("eu", 1), 1.0)
    assert states(view, 5.0) == [LIVE, SILENT, SILENT]
    assert states(view, 8.0) == [SILENT, SILENT, SILENT]
    assert states(view, 20.5) == [SILENT, LOST, LOST]
    assert states(view, 21.5) == [LOST, LOST, LOST]


def test_reports_out_of_order_and_of_unknown_sites_are_dropped() -> None:
    view = FleetView(FLEET, 0.0)
    assert view.hear(report("eu", 2), 0.0)
    assert not view.hear(report("eu", 1), 0.0)
    assert not view.hear(report("eu", 2), 0.0)
    assert view.hear(report("eu", 1, incarnation=2), 0.0)
    assert not view.hear(report("mars", 1), 0.0)


def test_an_agent_that_lost_its_disk_is_heard_again_after_a_silence() -> None:
    view = FleetView(FLEET, 0.0)
    assert view.hear(report("eu", 50, incarnation=9), 0.0)
    assert not view.hear(report("eu", 1, incarnation=1), 6.0)
    assert view.hear(report("eu", 2, incarnation=1), 6.5)
    assert view.hear(report("eu", 3, incarnation=1), 7.0)


def test_a_fall_of_demand_counts_only_after_a_while() -> None:
    view = FleetView(FLEET, 0.0)

    def demand(now_s: float) -> float:
        return view.snapshot(None, now_s).models[0].num_replicas

    view.hear(report("eu", 1, load=5), 0.0)
    assert demand(0.0) == 5
    view.hear(report("eu", 2, load=1), 1.0)
    assert demand(1.0) == demand(59.0) == 5
    view.hear(report("eu", 3, load=1), 61.0)
    assert demand(61.0) == 1
    assert demand(90.0) == 1, "the site is lost, its clients are not"


def test_prices_are_the_operators_and_regions_never_come_from_reports() -> None:
    view = FleetView(FLEET, 0.0)
    view.hear(report("eu", 1), 0.0)
    site = view.snapshot(None, 0.0).sites[0]
    assert (site.region, site.capacities[0].price_per_hour) == ("eu", 3.0)


class Scene:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(self.clock)
        self.sequence = 0

    def hub(self, name: str) -> Hub:
        return Hub(name, self.store, FLEET, place, clock=self.clock, ttl_s=6, plan_every_s=2)

    def tell(self, hub: Hub, *sites: str, load: float) -> list[ReportAnswer]:
        self.sequence += 1
        return [hub.hear(report(site, self.sequence, load=load)) for site in sites]

    async def stored(self) -> Plan:
        found = await self.store.get(PLAN_KEY)
        assert found is not None
        return msgspec.json.decode(found.value, type=Plan)


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_a_leader_plans_and_answers_sites_that_are_behind(scene: Scene) -> None:
    hub = scene.hub("a")
    await hub.step()
    assert not hub.leads, "it has heard nobody"
    scene.tell(hub, "eu", "us", "ap", load=2)
    await hub.step()
    assert hub.leads and replicas(hub.plan) == {"eu": 2, "us": 2, "ap": 2}
    assert (await scene.stored()).epoch == 1
    assert scene.tell(hub, "eu", load=2)[0].plan == hub.plan
    assert hub.hear(report("eu", 99, epoch=1)).plan is None


async def test_a_plan_that_changes_nothing_is_not_written(scene: Scene) -> None:
    hub = scene.hub("a")
    for _ in range(3):
        scene.tell(hub, "eu", "us", "ap", load=2)
        await hub.step()
        scene.clock.advance(2)
    assert (await scene.stored()).epoch == 1


async def test_a_new_leader_without_a_past_stops_nothing(scene: Scene) -> None:
    first = scene.hub("a")
    scene.tell(first, "eu", "us", "ap", load=4)
    await first.step()
    scene.clock.advance(7)
    second = scene.hub("b")
    await second.step()
    scene.tell(second, "eu", "us", load=0)  # their agents started anew, too
    await second.step()
    assert second.leads
    scene.clock.advance(3)
    scene.tell(second, "eu", "us", load=0)
    await second.step()
    assert replicas(second.plan) == {"eu": 4, "us": 4, "ap": 4}


async def test_a_candidate_that_hears_too_few_sites_gives_the_lead_away(scene: Scene) -> None:
    hub, other = scene.hub("a"), scene.hub("b")
    scene.tell(hub, "eu", "us", "ap", load=2)
    await hub.step()
    scene.clock.advance(7)
    scene.tell(hub, "eu", load=2)
    await hub.step()
    assert not hub.leads
    scene.tell(other, "eu", "us", "ap", load=2)
    await other.step()
    assert other.leads


async def test_a_lost_site_is_replaced_and_taken_back(scene: Scene) -> None:
    hub = scene.hub("a")
    scene.tell(hub, "eu", "us", "ap", load=2)
    await hub.step()
    for _ in range(5):
        scene.clock.advance(5)
        scene.tell(hub, "eu", "us", load=2)
        await hub.step()
    assert hub.plan is not None and set(hub.plan.site_ids) == {"eu", "us"}
    assert sum(replicas(hub.plan).values()) == 6, "its clients arrive elsewhere"
    scene.clock.advance(2)
    scene.tell(hub, "eu", "us", "ap", load=2)
    await hub.step()
    assert set(hub.plan.site_ids) == {"ap", "eu", "us"}


async def test_a_deposed_leader_writes_nothing_and_knows_it(scene: Scene) -> None:
    old, new = scene.hub("a"), scene.hub("b")
    scene.tell(old, "eu", "us", "ap", load=2)
    scene.tell(new, "eu", "us", "ap", load=3)
    await old.step()
    slow = FakeClock(scene.clock())
    old._leadership._clock = slow  # pyright: ignore[reportPrivateUsage]  # a process that stood still
    scene.clock.advance(6.5)
    scene.tell(new, "eu", "us", "ap", load=3)
    await new.step()
    assert new.leads and old.leads
    before = await scene.stored()
    scene.tell(old, "eu", "us", "ap", load=9)
    await old.step()
    assert not old.leads
    assert await scene.stored() == before and before.leader_id == "b"


async def test_a_lost_store_does_not_strand_the_sites_at_their_epochs(scene: Scene) -> None:
    """Its plans must be newer than those that sites hold, and it must not stop what runs there."""
    hub = scene.hub("a")
    running = (Running(model="chat", accelerator="h100", num_replicas=3),)
    for site in ("eu", "us", "ap"):
        hub.hear(msgspec.structs.replace(report(site, 1, load=1, epoch=41), running=running))
    await hub.step()
    assert (await scene.stored()).epoch == 42
    assert sum(replicas(hub.plan).values()) == 9 - min(6, FLEET.weights.max_stops)


async def test_a_hub_that_lives_through_the_loss_of_its_store_goes_on_planning(scene: Scene) -> None:
    hub = scene.hub("a")
    for load in (2, 3, 4):
        scene.tell(hub, "eu", "us", "ap", load=load)
        await hub.step()
        scene.clock.advance(3)
    before = await scene.stored()
    scene.store.lose_all()
    for _ in range(4):  # it learns that its lead is gone, wins it again, and plans
        scene.tell(hub, "eu", "us", "ap", load=6)
        await hub.step()
        scene.clock.advance(3)
    assert (await scene.stored()).epoch > before.epoch
    assert replicas(hub.plan) == {"eu": 6, "us": 6, "ap": 6}


def test_a_solver_that_takes_longer_than_the_lead_lives_does_not_lose_it() -> None:
    async def plan_slowly(loop: VirtualLoop) -> bool:
        async def slow(snapshot: Snapshot) -> Plan:
            await asyncio.sleep(30)
            return await place(snapshot)

        hub = Hub("a", MemoryStore(loop.time), FLEET, slow, clock=loop.time, ttl_s=6)
        hub.hear(report("eu", 1, load=1))
        await hub.step()
        return hub.leads and hub.num_plans == 1

    assert run_virtually(plan_slowly)


async def test_a_round_that_fails_does_not_end_the_hub(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    failures = iter([ZeroDivisionError("a mistake of ours")])

    async def fails_once(snapshot: Snapshot) -> Plan:
        for error in failures:
            raise error
        return await place(snapshot)

    hub = Hub("a", scene.store, FLEET, fails_once, clock=scene.clock, ttl_s=0.03)
    scene.tell(hub, "eu", "us", "ap", load=2)
    running = asyncio.create_task(hub.run())
    stored = await scene.store.watch(PLAN_KEY, after=0, timeout_s=30)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert stored is not None
    assert "a mistake of ours" in caplog.text


def test_routes_refuse_what_is_no_report_and_say_when_there_is_no_plan(scene: Scene) -> None:
    routes = hub_routes(scene.hub("a"))
    with pytest.raises(InvalidRequest, match="not a SiteReport"):
        routes["POST", "/report"](b"{}")
    with pytest.raises(NotReady, match="no plan yet"):
        routes["GET", "/plan"](b"")
    assert b'"leads":false' in routes["GET", "/healthz"](b"")
