"""What every plan keeps, whatever the fleet; and the cases that show what it weighs."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.scaling.hub.greedy import place_greedily
from sixfold.scaling.hub.model import (
    ANY_ORIGIN,
    LOST,
    SILENT,
    Constraints,
    Plan,
    Running,
    Snapshot,
    Weights,
)
from sixfold.scaling.hub.placement import improve, optimize
from sixfold.scaling.hub.problem import Placement, Problem
from sixfold.scaling.hub.score import score
from tests.fakes import FakeClock
from tests.scaling.hub.scenes import demand, near_and_far, random_snapshot, site


def replicas(plan: Plan, model: str = "m") -> dict[str, int]:
    return {item.site_id: item.num_replicas for item in plan.assignments if item.model == model}


def notes(plan: Plan) -> str:
    return "\n".join(note.text for note in plan.notes)


@pytest.mark.parametrize("solver", [True, False])
def test_ten_replicas_become_eight_and_two_when_the_near_site_has_eight(solver: bool) -> None:
    plan = optimize(near_and_far(demand("m", eu=10), near=8), deadline_s=5, solver=solver)
    assert replicas(plan) == {"eu": 8, "us": 2}
    assert {(route.site_id, route.weight) for route in plan.routes if route.origin == "eu"} == {
        ("eu", 0.8),
        ("us", 0.2),
    }
    assert "eu is full" in notes(plan)
    assert "serves 2.00 from eu at 90 ms" in next(item.reason for item in plan.assignments if item.site_id == "us")


@pytest.mark.parametrize("solver", [True, False])
def test_a_locked_model_stays_in_its_region_though_its_demand_has_no_room(solver: bool) -> None:
    locked = Constraints(units={"h100": 1}, regions=("eu",))
    plan = optimize(near_and_far(demand("m", locked, eu=10), near=8), deadline_s=5, solver=solver)
    assert replicas(plan) == {"eu": 8}
    assert {route.site_id for route in plan.routes} == {"eu"}
    assert "2.00 replicas' worth of its demand are not served" in notes(plan)
    assert not plan.allows("m", "us") and plan.allows("m", "eu") and plan.allows("unlocked", "us")


def test_fractions_of_many_origins_share_replicas() -> None:
    plan = optimize(near_and_far(demand("m", eu=0.3, us=0.3)), deadline_s=5)
    assert sum(replicas(plan).values()) == 1


def test_a_model_survives_the_loss_of_a_site_where_there_is_room() -> None:
    safe = Constraints(units={"h100": 1}, survive_share=0.5)
    plan = optimize(near_and_far(demand("m", safe, eu=8), near=8), deadline_s=5)
    assert replicas(plan)["us"] >= 4


def test_without_room_to_survive_there_is_a_plan_and_it_says_so() -> None:
    safe = Constraints(units={"h100": 1}, survive_share=1.0)
    plan = optimize(near_and_far(demand("m", safe, eu=8), near=8, far=2), deadline_s=5)
    assert replicas(plan) == {"eu": 8, "us": 2}
    assert "the loss of eu leaves room for 25% of its demand; 100% are asked for" in notes(plan)


def test_a_spread_model_runs_at_two_sites() -> None:
    spread = Constraints(units={"h100": 1}, min_sites=2, min_site_share=0.25)
    plan = optimize(near_and_far(demand("m", spread, eu=2)), deadline_s=5)
    assert replicas(plan) == {"eu": 1, "us": 1}
    eu = {route.site_id: route.weight for route in plan.routes if route.origin == "eu"}
    assert min(eu.values()) >= 0.25 and sum(eu.values()) == pytest.approx(1)


def test_the_important_model_gets_the_scarce_accelerators() -> None:
    urgent = Constraints(units={"h100": 1}, priority=10)
    plan = optimize(near_and_far(demand("m", eu=8), demand("urgent", urgent, eu=6), near=8, far=0), deadline_s=5)
    assert replicas(plan, "urgent") == {"eu": 6}
    assert replicas(plan) == {"eu": 2}


def test_a_replica_may_take_another_class_with_more_units() -> None:
    either = Constraints(units={"h100": 1, "l40s": 4})
    fleet = msgspec.structs.replace(
        near_and_far(demand("m", either, eu=3)), sites=(site("eu", 1), site("us", 10, region="eu", accelerator="l40s"))
    )
    plan = optimize(fleet, deadline_s=5)
    assert {(item.accelerator, item.num_replicas, item.units) for item in plan.assignments} == {
        ("h100", 1, 1),
        ("l40s", 2, 4),
    }


def test_a_small_gain_moves_nothing() -> None:
    before = optimize(near_and_far(demand("m", eu=4), near=0), deadline_s=5)
    assert replicas(before) == {"us": 4}
    costly = Weights(move=5.0)
    fleet = msgspec.structs.replace(near_and_far(demand("m", eu=4), previous=before), weights=costly)
    assert replicas(optimize(fleet, deadline_s=5)) == {"us": 4}
    cheap = msgspec.structs.replace(fleet, weights=Weights(move=0.1))
    assert replicas(optimize(cheap, deadline_s=5)) == {"eu": 4}


@pytest.mark.parametrize("solver", [True, False])
def test_moves_go_a_few_at_a_time(solver: bool) -> None:
    plan = optimize(near_and_far(demand("m", eu=8), near=0), deadline_s=5, solver=solver)
    seen = [replicas(plan)]
    for _ in range(3):
        fleet = near_and_far(demand("m", eu=8), near=8, previous=plan)
        plan = optimize(
            msgspec.structs.replace(fleet, weights=Weights(move=0.1, max_stops=3)), deadline_s=5, solver=solver
        )
        seen.append(replicas(plan))
    assert seen == [{"us": 8}, {"eu": 3, "us": 5}, {"eu": 6, "us": 2}, {"eu": 8}]


def test_what_a_lost_site_ran_starts_elsewhere_at_once() -> None:
    before = optimize(near_and_far(demand("m", eu=8)), deadline_s=5)
    fleet = near_and_far(demand("m", eu=8), previous=before)
    lost = msgspec.structs.replace(
        fleet, sites=(msgspec.structs.replace(fleet.sites[0], state=LOST), fleet.sites[1]), weights=Weights(max_stops=0)
    )
    plan = optimize(lost, deadline_s=5)
    assert replicas(plan) == {"us": 8}
    assert plan.site_ids == ("us",)


def test_nothing_changes_at_a_silent_site() -> None:
    before = optimize(near_and_far(demand("m", eu=4)), deadline_s=5)
    fleet = near_and_far(demand("m", eu=10), previous=before)
    silent = msgspec.structs.replace(
        fleet, sites=(msgspec.structs.replace(fleet.sites[0], state=SILENT), fleet.sites[1])
    )
    plan = optimize(silent, deadline_s=5)
    assert replicas(plan) == {"eu": 4, "us": 6}
    assert next(item for item in plan.assignments if item.site_id == "eu").ceiling == 4


def test_a_site_that_returns_keeps_what_it_runs_until_moves_allow() -> None:
    elsewhere = optimize(near_and_far(demand("m", eu=8), near=0), deadline_s=5)
    elsewhere = msgspec.structs.replace(elsewhere, site_ids=("us",))
    fleet = near_and_far(demand("m", eu=8), previous=elsewhere)
    back = msgspec.structs.replace(fleet.sites[0], running=(Running(model="m", accelerator="h100", num_replicas=8),))
    returned = msgspec.structs.replace(fleet, sites=(back, fleet.sites[1]), weights=Weights(max_stops=2))
    plan = optimize(returned, deadline_s=5)
    assert replicas(plan) == {"eu": 8, "us": 6}
    assert "6 more than wanted: this plan stops no more than 2" in notes(plan)


def test_a_model_that_no_site_may_run_is_explained() -> None:
    plan = optimize(near_and_far(demand("m", Constraints(units={"b200": 1}), eu=1)), deadline_s=5)
    assert plan.assignments == ()
    assert "class b200 in regions all" in notes(plan)


def test_an_empty_fleet_gives_an_empty_plan() -> None:
    assert optimize(Snapshot(sites=(), models=()), deadline_s=1).assignments == ()


def test_bounds_leave_room_to_scale_without_the_hub() -> None:
    plan = optimize(near_and_far(demand("m", eu=4), demand("n", eu=2), near=9), deadline_s=5)
    bounds = {item.model: (item.floor, item.num_replicas, item.ceiling) for item in plan.assignments}
    assert bounds == {"m": (2, 4, 6), "n": (1, 2, 3)}


def test_out_of_time_the_greedy_plan_holds() -> None:
    clock = FakeClock()
    plan = optimize(random_snapshot(3, num_sites=6, num_models=20, units=30), deadline_s=0, clock=clock)
    assert plan.solver == "greedy"


SNAPSHOTS = st.builds(
    random_snapshot,
    st.integers(0, 2**32),
    num_sites=st.integers(1, 6),
    num_models=st.integers(1, 6),
    units=st.sampled_from([3, 12, 60]),
)


@settings(max_examples=60, deadline=None)
@given(first=SNAPSHOTS, second=st.integers(0, 2**32), solver=st.booleans())
def test_no_plan_breaks_what_is_hard(first: Snapshot, second: int, solver: bool) -> None:
    plan = None
    for fleet in (first, random_snapshot(second, num_sites=5, num_models=5, units=12)):
        fleet = msgspec.structs.replace(fleet, previous=plan)
        plan = optimize(fleet, deadline_s=1.0, solver=solver)
        check_hard_limits(fleet, plan)


def check_hard_limits(fleet: Snapshot, plan: Plan) -> None:
    sites = {at.site_id: at for at in fleet.sites}
    models = {item.model: item for item in fleet.models}
    capacity = {(at.site_id, item.accelerator): item.num_units for at in fleet.sites for item in at.capacities}
    total: dict[str, int] = {}
    for item in plan.assignments:
        capacity[item.site_id, item.accelerator] -= item.ceiling * item.units
        total[item.model] = total.get(item.model, 0) + item.ceiling
        assert 1 <= item.floor <= item.num_replicas <= item.ceiling
        assert models[item.model].constraints.allows(sites[item.site_id].region)
    assert min(capacity.values()) >= 0
    assert all(count <= models[name].constraints.max_replicas for name, count in total.items())
    for route in plan.routes:
        assert models[route.model].constraints.allows(sites[route.site_id].region)
        assert route.weight >= 0
    for name in {item.model for item in plan.assignments}:
        shares = [route.weight for route in plan.routes if (route.model, route.origin) == (name, ANY_ORIGIN)]
        assert sum(shares) == pytest.approx(1, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(first=SNAPSHOTS, second=st.integers(0, 2**32))
def test_the_solver_is_never_worse_than_greedy_and_stops_no_more_than_allowed(first: Snapshot, second: int) -> None:
    before = optimize(first, deadline_s=1, solver=False)
    after = random_snapshot(second, num_sites=5, num_models=5, units=12, previous=before)
    problem = Problem(after)
    greedy = place_greedily(problem)
    clock = FakeClock()
    found, _ = improve(problem, greedy, clock() + 1.0, clock)
    assert score(problem, found).total <= score(problem, greedy).total
    assert problem.violations(greedy) == problem.violations(found) == []
    assert problem.stops(found.replicas) <= after.weights.max_stops


def test_stopping_nothing_is_always_allowed() -> None:
    """The bound on moves never leaves a hub without a plan, though capacity and maxima shrank."""
    before = optimize(near_and_far(demand("m", eu=20)), deadline_s=1, solver=False)
    fleet = near_and_far(demand("m", Constraints(units={"h100": 1}, max_replicas=5), eu=20), near=3, previous=before)
    problem = Problem(msgspec.structs.replace(fleet, weights=Weights(max_stops=0)))
    assert problem.violations(Placement(dict(problem.carried))) == []


def test_a_large_fleet_is_planned_in_groups_within_the_deadline() -> None:
    fleet = random_snapshot(1, num_sites=20, num_models=200, units=400)
    busy = tuple(
        msgspec.structs.replace(
            item,
            constraints=msgspec.structs.replace(item.constraints, max_replicas=1000),
            loads=tuple(msgspec.structs.replace(load, num_replicas=4 * load.num_replicas) for load in item.loads),
        )
        for item in fleet.models
    )
    fleet = msgspec.structs.replace(fleet, models=busy)
    greedy = optimize(fleet, deadline_s=0, solver=False)
    plan = optimize(fleet, deadline_s=3.0)
    assert sum(item.num_replicas for item in plan.assignments) > 2000
    assert plan.solver == "milp" and plan.objective < greedy.objective
    check_hard_limits(fleet, plan)
