"""What re-tunes itself says so once it is somewhere else, in bounds, and for those who may know."""

from __future__ import annotations

import json

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.core.batching.budget import Objective, ObjectiveKind, StepBudget
from sixfold.core.batching.model import StepRange
from sixfold.core.decisions import Decision, DecisionLog, merged
from sixfold.core.runtime.wire import FromWorker, Stats
from tests.fakes import FakeClock


def log_at(clock: FakeClock) -> DecisionLog:
    return DecisionLog(clock)


def test_a_decision_is_shown_with_the_names_that_dashboards_read() -> None:
    log = DecisionLog(lambda: 12.5)
    log.changed("host_cache", "copy", "recompute", "copying takes longer", objective="least time")
    shown = json.loads(msgspec.json.encode(merged({"chat/0": log.recent})))
    assert shown == {
        "object": "list",
        "data": [
            {
                "number": 1,
                "time": 12.5,
                "source": "chat/0",
                "what": "host_cache",
                "from": "copy",
                "to": "recompute",
                "reason": "copying takes longer",
                "objective": "least time",
            }
        ],
    }


def test_a_setting_that_moves_all_the_time_is_told_when_it_is_far_from_what_was_told_and_not_too_often() -> None:
    clock = FakeClock()
    log = log_at(clock)
    for after_s, value in ((0, 100), (11, 110), (1, 130), (5, 900), (5, 135), (5, 200)):
        clock.advance(after_s)
        log.moved("units", value, lambda: "r", objective="o", least=0.2)
    assert [(each.before, each.after) for each in log.recent] == [(100, 130), (130, 200)]


def test_two_sources_have_courses_of_their_own_and_all_is_shown_by_time() -> None:
    clock = FakeClock()
    first, second = log_at(clock), log_at(clock)
    for log, value in ((first, 1), (second, 1), (first, 9), (second, 8)):
        clock.advance(11.0)
        log.moved("x", value, lambda: "r", objective="o", least=0.1)
    assert [(each.source, each.after) for each in merged({"a": first.recent, "b": second.recent}).data] == [
        ("a", 9),
        ("b", 8),
    ]


def test_the_ring_is_bounded_and_numbers_go_on() -> None:
    log = DecisionLog(lambda: 0.0)
    for number in range(1000):
        log.changed("x", number, number + 1, "r", objective="o")
    assert (log.num, len(log.recent), log.recent[-1].number) == (1000, 256, 1000)


def test_decisions_cross_the_border_of_a_worker_as_they_were() -> None:
    sent = Stats(decisions=(Decision(number=3, time_s=1.0, what="x", before=1, after="y", reason="r", objective="o"),))
    arrived = msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=FromWorker)
    assert arrived == sent
    log = DecisionLog()
    log.take(sent.decisions)
    assert (log.num, log.recent) == (3, sent.decisions)


def test_the_step_budget_tells_where_it_went_and_what_bounds_it() -> None:
    clock = FakeClock()
    log = log_at(clock)
    bounds = StepRange(min_units=8, initial_units=256, max_units=4096)
    budget = StepBudget(bounds, Objective(kind=ObjectiveKind.P95_ITL_S, target_s=0.05), log)
    for _ in range(400):
        clock.advance(0.1)
        units = budget.units
        budget.observe_step(units, 0.01 + 0.001 * units, limited=True)
    assert log.recent and {each.what for each in log.recent} == {"step_budget_units"}
    last = log.recent[-1]
    assert last.objective == "p95_itl_s <= 0.05; 8..4096 units"
    assert "a step takes 10 ms and 1e+03 us a unit" in last.reason


@settings(deadline=None)
@given(
    kind=st.sampled_from(ObjectiveKind),
    steps=st.lists(st.tuples(st.integers(1, 5000), st.floats(0.0, 10.0), st.booleans()), min_size=16, max_size=60),
)
def test_nothing_that_is_told_of_the_budget_is_out_of_its_declared_bounds(
    kind: ObjectiveKind, steps: list[tuple[int, float, bool]]
) -> None:
    clock = FakeClock()
    log = log_at(clock)
    budget = StepBudget(
        StepRange(min_units=8, initial_units=64, max_units=500), Objective(kind=kind, target_s=0.1), log
    )
    for units, seconds, limited in steps * 3:
        clock.advance(1.0)
        budget.observe_latency(kind, seconds)
        budget.observe_step(units, seconds, limited=limited)
        assert 8 <= budget.units <= 500
    assert all(8 <= float(each.after) <= 500 for each in log.recent)
