"""Locked models stay in their regions whatever fails; what may move follows the plan's shares, and spills over by distance."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.core.decisions import DecisionLog
from sixfold.core.errors import NotReady
from sixfold.scaling.agent.messages import LoadAnswer, SiteModel
from sixfold.scaling.gateway.fleet import Fleet, ServedName, read_listing
from sixfold.scaling.gateway.geography import Geography, Journey, RegionLocked
from sixfold.scaling.gateway.outlier import OutlierDetector
from sixfold.scaling.gateway.settings import OutlierSettings
from sixfold.scaling.hub.model import Lock, Plan, Route
from sixfold.scaling.registry import ReplicaRecord
from sixfold.scaling.route.load import RoundRobin
from sixfold.scaling.route.router import ReplicaFacts, Router
from tests.fakes import FakeClock

REGIONS = ("eu", "us", "ap")
DISTANCE_S = {"eu": 0.01, "us": 0.09, "ap": 0.2}


def plan_of(shares: dict[str, float], *, epoch: int = 1, locks: tuple[Lock, ...] = (), model: str = "chat") -> Plan:
    routes = tuple(
        Route(model=model, origin="eu", site_id=site, weight=share, latency_s=DISTANCE_S[site])
        for site, share in shares.items()
    )
    return Plan(epoch=epoch, leader_id="hub-1", routes=routes, locks=locks)


class World:
    """A gateway in eu before replicas in three regions."""

    def __init__(self, region: str = "eu", draw: float = 0.0) -> None:
        self.clock = FakeClock()
        self.decisions = DecisionLog(lambda: 0.0)
        self.draw = draw
        self.geography = Geography(
            region, follows=True, clock=self.clock, decisions=self.decisions, refusal_s=2.0, draw=lambda: self.draw
        )
        self.router = Router(RoundRobin())
        outliers = OutlierDetector(OutlierSettings())
        self.fleet = Fleet((self.router,), outliers, self.geography.permits, self.clock, lambda: None)

    def run(self, *regions: str, models: str = '[{"id": "chat"}, {"id": "notes"}]') -> None:
        """Has one replica up in each region."""
        self.fleet.set_records([ReplicaRecord(replica_id=f"r-{each}", url="http://r", region=each) for each in regions])
        for replica in self.fleet:
            self.fleet.probed(
                replica, read_listing(msgspec.json.decode(models, type=list[msgspec.Raw])), draining=False
            )

    def journey(self, model: str = "chat", origin: str | None = None) -> Journey:
        return self.geography.enter(self.fleet.names_of(model), origin)

    def sites(self, journey: Journey, session: str | None = None) -> set[str]:
        chosen = self.geography.prefer(journey, session, self.fleet.available(journey.model))
        return {each.site for each in chosen}


def test_before_the_first_plan_nothing_is_served_since_nobody_knows_what_is_locked() -> None:
    world = World()
    world.run("eu")
    with pytest.raises(NotReady, match="does not know yet which regions"):
        world.geography.check(("chat",))
    world.geography.offer(plan_of({"eu": 1.0}))
    world.geography.check(("chat",))


def test_a_gateway_outside_of_a_models_regions_refuses_it_and_says_where_to_go() -> None:
    world = World("us")
    world.run("eu", "us")
    world.geography.offer(plan_of({"eu": 1.0}, locks=(Lock(model="notes", regions=("eu",)),)))
    with pytest.raises(RegionLocked, match="in eu only, and this gateway is in us") as refused:
        world.geography.check(world.fleet.names_of("notes"))
    assert refused.value.status == 421
    world.geography.check(world.fleet.names_of("chat"))


def test_an_alias_and_an_adapter_of_a_locked_model_are_locked_too() -> None:
    world = World()
    world.run("eu", "us", models='[{"id": "n", "root": "notes"}, {"id": "ink", "root": "x", "parent": "notes"}]')
    world.geography.offer(plan_of({"eu": 1.0}, locks=(Lock(model="notes", regions=("eu",)),)))
    for name in ("n", "ink"):
        assert [each.region for each in world.fleet.available(name)] == ["eu"]


def test_a_locked_model_without_a_server_at_home_is_refused_and_the_message_names_the_regions() -> None:
    world = World()
    world.run("us", "ap")
    world.geography.offer(plan_of({"eu": 1.0}, locks=(Lock(model="notes", regions=("eu",)),)))
    assert world.fleet.available("notes") == []
    assert "in the regions that it may enter (eu)" in str(world.geography.no_replica(("notes",)))
    assert len(world.fleet.available("chat")) == 2


def test_while_anything_is_locked_what_names_no_model_stays_where_the_gateway_is_unless_it_asks_about_an_object() -> (
    None
):
    world = World()
    world.run("eu", "us")
    world.geography.offer(plan_of({"eu": 1.0}))
    assert len(world.fleet.available(None)) == 2
    world.geography.offer(plan_of({"eu": 1.0}, epoch=2, locks=(Lock(model="notes", regions=("eu",)),)))
    assert [each.region for each in world.fleet.available(None)] == ["eu"]
    assert [each.region for each in world.fleet.available(None, only="r-us")] == ["us"]
    assert world.fleet.available("notes", only="r-us") == []


def test_the_draw_follows_the_shares_and_a_session_stays() -> None:
    world = World()
    world.run(*REGIONS)
    world.geography.offer(plan_of({"eu": 0.8, "us": 0.2, "ap": 0.0}))
    found: list[set[str]] = []
    for step in range(10):
        world.draw = step / 10
        found.append(world.sites(world.journey()))
    assert found == [{"eu"}] * 8 + [{"us"}] * 2
    assert len({frozenset(world.sites(world.journey(), "ward-7")) for world.draw in (0.0, 0.5, 0.9)}) == 1


def test_what_was_lost_with_a_site_goes_to_another_one_at_once_and_others_follow_when_nobody_is_left_there() -> None:
    world = World()
    world.run(*REGIONS)
    world.geography.offer(plan_of({"eu": 1.0, "us": 0.0, "ap": 0.0}))
    first, other = world.journey(), world.journey()
    assert world.sites(first) == {"eu"}
    world.geography.lost(first)
    assert (world.sites(first), world.sites(other)) == ({"us"}, {"eu"})
    world.geography.refused(other)
    assert world.sites(world.journey()) == {"us"}
    world.clock.advance(2.1)
    assert world.sites(world.journey()) == {"eu"}
    told = [(each.what, each.before, each.after) for each in world.decisions.recent]
    assert told == [("site_share", 0.0, 1.0), ("site", "eu", "the next nearest")]


def test_a_site_that_is_full_by_what_its_agent_says_gets_what_it_has_room_for() -> None:
    world = World()
    world.run(*REGIONS)
    world.geography.offer(plan_of({"eu": 1.0, "us": 0.0, "ap": 0.0}))
    journeys = [world.journey() for _ in range(20)]
    for journey in journeys:
        world.sites(journey)
    load = SiteModel(model="chat", num_ready=1, concurrency=7, num_in_flight=20)
    world.geography.heard(LoadAnswer(site_id="eu", region="eu", models=(load,)))
    world.draw = 0.49
    assert world.sites(world.journey()) == {"eu"}
    world.draw = 0.51
    assert world.sites(world.journey()) == {"us"}


def test_the_home_site_hears_all_demand_and_each_site_what_was_sent_there() -> None:
    world = World()
    world.run(*REGIONS)
    world.geography.offer(plan_of({"eu": 0.5, "us": 0.5}))
    journeys = [world.journey(origin=origin) for origin in ("eu", "eu", "mars")]
    for world.draw, journey in zip((0.0, 0.9, 0.9), journeys, strict=True):
        world.sites(journey)
    home = world.geography.report("gw", "eu", home=True)
    assert [(load.model, load.origin, load.num_in_flight) for load in home.demand] == [("chat", "eu", 3)]
    assert [load.num_in_flight for load in home.routed] == [1]
    away = world.geography.report("gw", "us", home=False)
    assert (away.demand, [load.num_in_flight for load in away.routed], away.epoch) == ((), [2], 1)
    for journey in journeys:
        world.geography.leave(journey)
    assert world.geography.report("gw", "eu", home=True).demand == ()


SHARES = st.dictionaries(st.sampled_from(REGIONS), st.floats(0, 1), min_size=1)
LOCKS = st.dictionaries(
    st.sampled_from(["chat", "notes", "base"]), st.sets(st.sampled_from(REGIONS), min_size=1).map(tuple)
)


@settings(deadline=None)
@given(
    SHARES,
    LOCKS,
    st.sets(st.sampled_from(REGIONS)),
    st.lists(st.sampled_from(["lost", "refused", "again", "full", "wait"]), max_size=8),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["chat", "notes", "alias", "adapter"]),
)
def test_no_locked_request_is_ever_offered_a_replica_outside_and_no_permitted_one_is_left_without(
    weights: dict[str, float],
    locked: dict[str, tuple[str, ...]],
    up: set[str],
    events: list[str],
    draw: float,
    name: str,
) -> None:
    world = World(draw=draw)
    models = (
        '[{"id": "chat"}, {"id": "notes", "root": "notes"}, {"id": "alias", "root": "notes"},'
        '{"id": "adapter", "root": "weights", "parent": "base"}]'
    )
    world.run(*sorted(up), models=models)
    locks = tuple(Lock(model=model, regions=regions) for model, regions in locked.items())
    total = sum(weights.values()) or 1.0
    plan = plan_of({site: weight / total for site, weight in weights.items()}, locks=locks, model="chat")
    world.geography.offer(plan)
    behind = {"chat": "chat", "notes": "notes", "alias": "notes", "adapter": "base"}[name]
    allowed = up & set(locked.get(behind, REGIONS))
    journey = world.geography.enter(world.fleet.names_of(name), "eu")
    for event in [*events, "again"]:
        if event == "wait":
            world.clock.advance(1.0)
        elif event == "lost":
            world.geography.lost(journey)
        elif event == "refused":
            world.geography.refused(journey)
        elif event == "full":
            full = SiteModel(model="chat", num_ready=1, concurrency=1, num_in_flight=100)
            world.geography.heard(LoadAnswer(site_id="eu", region="eu", models=(full,)))
        candidates: list[ReplicaFacts] = world.fleet.available(name)
        assert {each.region for each in candidates} == allowed
        if candidates:
            chosen = world.geography.prefer(journey, None, candidates)
            assert chosen and {each.region for each in chosen} <= allowed


def test_names_of_a_served_model_are_its_own_its_roots_and_its_parents() -> None:
    world = World()
    world.run("eu", models='[{"id": "a", "root": "b", "parent": "c"}]')
    (replica,) = world.fleet
    assert replica.names["a"] == ServedName(id="a", root="b", parent="c")
    assert (replica.names_of("a"), replica.names_of("other"), replica.names_of(None)) == (
        ("a", "b", "c"),
        ("other",),
        (),
    )
