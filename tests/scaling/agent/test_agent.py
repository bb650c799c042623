"""A site takes plans by their epoch alone, keeps within the last one without a hub, and never holds more than it has."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.core.errors import ConfigError
from sixfold.scaling.agent.agent import Agent
from sixfold.scaling.agent.demand import LocalDemand
from sixfold.scaling.agent.messages import GatewayLoad, LoadReport
from sixfold.scaling.agent.reconcile import Action, Held, Slot, Target, reconcile
from sixfold.scaling.agent.standing import Standing, take_plan
from sixfold.scaling.agent.state_file import StateFile
from sixfold.scaling.hub.messages import ReportAnswer
from sixfold.scaling.hub.model import Assignment, Capacity, Lock, Plan, Running
from tests.fakes import FakeClock

CHAT = Slot("chat", "h100")
NOTES = Slot("notes", "h100")


def plan(epoch: int, *, planned: int = 4, floor: int = 2, ceiling: int = 6, sites: tuple[str, ...] = ("eu",)) -> Plan:
    part = Assignment(
        model="chat", site_id="eu", accelerator="h100", units=1, num_replicas=planned, floor=floor, ceiling=ceiling
    )
    return Plan(epoch=epoch, leader_id="hub", site_ids=sites, assignments=(part,) if "eu" in sites else ())


class InstantEngine:
    """Replicas are ready at once and gone at once."""

    def __init__(self) -> None:
        self.counts: dict[Slot, int] = {}
        self.units: dict[Slot, int] = {}

    def capacities(self) -> tuple[Capacity, ...]:
        return (Capacity(accelerator="h100", num_units=8),)

    def held(self) -> tuple[Held, ...]:
        return tuple(
            Held(slot=slot, units=self.units[slot], num_active=count, num_ready=count)
            for slot, count in self.counts.items()
            if count
        )

    def act(self, action: Action) -> None:
        self.counts[action.slot] = self.counts.get(action.slot, 0) + action.num_replicas
        self.units[action.slot] = action.units


class Site:
    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.engine = InstantEngine()
        self.file = StateFile(folder / "eu.json", Standing())
        self.restart()

    def restart(self) -> None:
        demand = LocalDemand({"chat": 10.0}, forget_s=10, window_s=60)
        self.agent = Agent("eu", "eu", self.engine, self.file, demand, clock=self.clock, alone_after_s=30)

    def load(self, num_in_flight: float) -> None:
        load = (GatewayLoad(model="chat", origin="eu", num_in_flight=num_in_flight),)
        self.agent.hear(LoadReport(gateway_id="gw", demand=load, routed=load))

    def replicas(self) -> int:
        self.agent.step()
        return self.engine.counts.get(CHAT, 0)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_only_a_higher_epoch_is_taken(site: Site) -> None:
    assert site.agent.offer(plan(5))
    for old in (4, 5):
        assert not site.agent.offer(plan(old, planned=1))
    assert site.replicas() == 4
    assert site.agent.offer(plan(6, planned=3))
    assert site.replicas() == 3


def test_a_restarted_agent_still_refuses_older_plans_and_reports_as_a_later_incarnation(site: Site) -> None:
    site.agent.offer(plan(5))
    before = site.agent.report()
    site.restart()
    assert not site.agent.offer(plan(4))
    assert site.replicas() == 4
    after = site.agent.report()
    assert after.newer_than(before) and not before.newer_than(after)
    assert after.running == (Running(model="chat", accelerator="h100", num_replicas=4),)


def test_an_agent_that_lost_its_disk_stops_nothing_until_it_has_a_plan(site: Site, tmp_path: Path) -> None:
    site.agent.offer(plan(5))
    assert site.replicas() == 4
    (tmp_path / "eu.json").unlink()
    site.restart()
    assert site.replicas() == 4
    site.agent.offer(plan(5, planned=3))
    assert site.replicas() == 3


def test_a_plan_that_the_disk_refuses_is_not_taken(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path, _target: Path) -> Path:
        raise OSError("no space left on device")

    site.agent.offer(plan(5))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        assert not site.agent.offer(plan(6, planned=1))
    assert site.agent.plan.epoch == 5 and site.replicas() == 4
    assert site.agent.num_write_failures == 1
    site.restart()
    assert site.agent.plan.epoch == 5


def test_a_site_that_was_counted_out_keeps_what_it_runs_and_takes_the_epoch(site: Site) -> None:
    site.agent.offer(plan(5))
    assert site.agent.offer(plan(6, sites=("us",)))
    assert site.agent.plan.epoch == 6 and site.replicas() == 4


def test_a_lock_holds_at_once_though_the_site_was_counted_out(site: Site) -> None:
    site.agent.offer(plan(5))
    assert site.replicas() == 4 and site.agent.admits("chat")
    site.agent.offer(Plan(epoch=6, site_ids=("us",), locks=(Lock(model="chat", regions=("us",)),)))
    assert not site.agent.admits("chat")
    assert site.replicas() == 0


def test_with_the_hub_its_wish_is_the_least_and_growth_does_not_wait(site: Site) -> None:
    site.agent.answered(ReportAnswer(plan=plan(1)))
    assert site.replicas() == 4
    site.load(50)
    assert site.replicas() == 5
    site.load(500)
    assert site.replicas() == 6


def test_without_the_hub_replicas_follow_the_load_between_floor_and_ceiling(site: Site) -> None:
    site.agent.answered(ReportAnswer(plan=plan(1)))
    site.clock.advance(31)
    assert site.agent.alone
    site.load(30)
    assert site.replicas() == 3
    site.load(500)
    assert site.replicas() == 6
    site.clock.advance(61)
    site.load(0)
    assert site.replicas() == 2
    site.agent.answered(ReportAnswer())
    assert site.replicas() == 4


def test_a_gateway_that_falls_silent_is_forgotten(site: Site) -> None:
    site.load(30)
    assert [load.num_replicas for load in site.agent.report().loads] == [3.0]
    site.clock.advance(11)
    assert site.agent.report().loads == ()


def test_a_state_file_of_something_else_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "eu.json").write_text("[]")
    with pytest.raises(ConfigError, match="does not hold the last plan"):
        StateFile(tmp_path / "eu.json", Standing()).load()


@given(st.lists(st.integers(1, 9), max_size=12))
def test_whatever_the_order_the_highest_epoch_holds(epochs: list[int]) -> None:
    standing = Standing()
    for epoch in epochs:
        standing = take_plan(standing, plan(epoch, planned=epoch), "eu") or standing
    highest = max(epochs, default=0)
    assert standing.plan.epoch == highest
    assert [item.num_replicas for item in standing.assignments] == ([highest] if epochs else [])


def test_a_start_waits_for_the_accelerators_of_what_stops() -> None:
    held = [Held(slot=CHAT, units=1, num_active=4)]
    wanted = [Target(slot=NOTES, units=2, num_replicas=2)]
    assert reconcile(wanted, held, {"h100": 5}) == (Action(slot=CHAT, units=1, num_replicas=-4),)
    draining = [Held(slot=CHAT, units=1, num_active=0, num_stopping=3)]
    assert reconcile(wanted, draining, {"h100": 5}) == (Action(slot=NOTES, units=2, num_replicas=1),)


def test_models_take_turns_for_what_is_free() -> None:
    wanted = [Target(slot=CHAT, units=1, num_replicas=5), Target(slot=NOTES, units=1, num_replicas=1)]
    started = {action.slot: action.num_replicas for action in reconcile(wanted, [], {"h100": 3})}
    assert started == {CHAT: 2, NOTES: 1}


COUNTS = st.integers(0, 6)


@given(COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, st.integers(0, 20))
def test_no_start_exceeds_what_is_free(a: int, b: int, c: int, d: int, want_a: int, want_b: int, spare: int) -> None:
    held = [
        Held(slot=CHAT, units=1, num_active=a, num_stopping=b),
        Held(slot=NOTES, units=3, num_active=c, num_stopping=d),
    ]
    used = a + b + 3 * (c + d)
    targets = [Target(slot=CHAT, units=1, num_replicas=want_a), Target(slot=NOTES, units=3, num_replicas=want_b)]
    actions = {item.slot: item.num_replicas for item in reconcile(targets, held, {"h100": used + spare})}
    assert max(0, actions.get(CHAT, 0)) + 3 * max(0, actions.get(NOTES, 0)) <= spare
    assert actions.get(CHAT, 0) <= want_a - a or a > want_a
    if spare >= 24:
        assert (a + actions.get(CHAT, 0), c + actions.get(NOTES, 0)) == (want_a, want_b)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.floats(0, 60), st.booleans()), min_size=1, max_size=15),
    st.integers(1, 4),
)
def test_whatever_the_load_a_site_stays_in_the_bounds_of_its_plan_and_says_why_it_changed(
    steps: list[tuple[int, float, bool]], planned: int
) -> None:
    with TemporaryDirectory() as folder:
        site = Site(Path(folder))
        site.agent.offer(plan(1, planned=planned, floor=1, ceiling=6))
        (item,) = site.agent.assignments
        for num_in_flight, wait_s, hub_answers in steps:
            site.clock.advance(wait_s)
            if hub_answers:
                site.agent.answered(ReportAnswer())
            site.load(num_in_flight)
            assert item.floor <= site.replicas() <= item.ceiling
        told = site.agent.decisions.recent
        assert [each.before for each in told] == [0, *(each.after for each in told[:-1])]
        assert told[-1].after == site.replicas()
        assert all(each.objective == f"{item.floor}..{item.ceiling} of plan 1" for each in told)


def test_a_gateways_report_is_answered_with_what_it_needs_to_route(site: Site) -> None:
    site.agent.offer(plan(5))
    load = (GatewayLoad(model="chat", origin="eu", num_in_flight=6),)
    answer = site.agent.answer(LoadReport(gateway_id="gw", epoch=4, routed=load), {"chat": ["http://a", "http://b"]})
    assert (answer.site_id, answer.region) == ("eu", "eu")
    assert answer.plan is not None and answer.plan.epoch == 5
    assert [replica.url for replica in answer.replicas] == ["http://a", "http://b"]
    (model,) = answer.models
    assert (model.num_ready, model.concurrency, model.num_in_flight) == (2, 10.0, 6)
    assert site.agent.answer(LoadReport(gateway_id="gw", epoch=5), {}).plan is None
