"""What the scheduler promises of each step and of every wait: keys, budget, memory, fair shares, bounded waits."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.core.batching.model import StepRange
from sixfold.core.errors import InvalidRequest
from sixfold.core.messages import Priority
from tests.core.batching.loop_harness import LoopHarness
from tests.fakes import FakeInput, FakePiece, FakeStepModel, FakeWork, many_sequences, one_sequence


def model_with_budget(units: int, *, memory_units: int | None = None) -> FakeStepModel:
    bounds = StepRange(min_units=units, initial_units=units, max_units=units)
    return FakeStepModel(memory_units=memory_units, step_range=bounds)


def shares(harness: LoopHarness, num_batches: int, *, first: int = 0) -> Counter[str]:
    """Units that each request id's tenant (its prefix before ``-``) was granted."""
    counted: Counter[str] = Counter()
    for batch in harness.model.batches[first : first + num_batches]:
        for sequence, units in batch:
            counted[sequence.request_id.split("-")[0]] += units
    return counted


# The batch of one step.


def test_divisible_work_is_cut_to_the_budget() -> None:
    harness = LoopHarness(model_with_budget(8))
    harness.submit("r", one_sequence(FakeWork(divisible_units=20)))
    harness.run(3)
    assert [units for batch in harness.model.batches for _sequence, units in batch] == [8, 8, 4]


def test_indivisible_work_over_the_budget_runs_alone() -> None:
    harness = LoopHarness(model_with_budget(8))
    harness.submit("large", one_sequence(FakeWork(step_units=30)))
    harness.submit("small", one_sequence(FakeWork()))
    harness.run_until_idle()
    assert [len(batch) for batch in harness.model.batches] == [1, 1]


def test_indivisible_work_over_the_budget_gets_in_beside_an_endless_stream_of_small_work() -> None:
    harness = LoopHarness(model_with_budget(8), patience_s=0.2)
    harness.submit("large", one_sequence(FakeWork(step_units=30)))
    for index in range(200):
        harness.submit(f"r{index}", many_sequences(FakeWork(num_steps=2), 6), tenant=f"t{index}")
        harness.run()
        if harness.ended_s.get("large"):
            break
    assert harness.finished("large")
    assert len(harness.model.batches) < 60


def test_a_step_has_one_batch_key_and_takes_what_fits_it_from_anywhere_in_the_queue() -> None:
    harness = LoopHarness(model_with_budget(8))
    for index in range(6):
        harness.submit(f"r{index}", one_sequence(FakeWork(key="ab"[index % 2])))
    harness.run_until_idle()  # the model asserts one key a step
    assert [len(batch) for batch in harness.model.batches] == [3, 3]


def test_running_work_of_several_keys_takes_turns() -> None:
    harness = LoopHarness(model_with_budget(8))
    for key in "abc":
        harness.submit(key, one_sequence(FakeWork(num_steps=100, key=key)), tenant=key)
    harness.run(30)
    assert shares(harness, 30) == {"a": 10, "b": 10, "c": 10}


def test_no_more_sequences_run_than_allowed() -> None:
    harness = LoopHarness(model_with_budget(100), max_running_sequences=3)
    harness.submit("r", many_sequences(FakeWork(num_steps=2), 10))
    harness.run_until_idle()
    assert max(len(batch) for batch in harness.model.batches) == 3


@pytest.mark.parametrize("max_running", [8, 64])
def test_a_waiting_sequence_that_cannot_start_does_not_keep_the_turn_with_its_own_key(max_running: int) -> None:
    harness = LoopHarness(model_with_budget(4), patience_s=1e9, max_running_sequences=max_running)
    for index, key in enumerate("aaaabbcaaaab"):  # more of a than fit a step
        harness.submit(f"{key}-{index}", one_sequence(FakeWork(num_steps=40, key=key)))
    harness.run(60)
    steps = Counter(batch[0][0].work.key for batch in harness.model.batches)
    assert steps["a"] == steps["b"] == steps["c"] == 20


def test_a_sequence_of_a_new_key_starts_although_the_head_of_the_queue_cannot() -> None:
    harness = LoopHarness(model_with_budget(4), patience_s=1e9)
    for index in range(9):
        harness.submit(f"a-{index}", one_sequence(FakeWork(num_steps=50, key="a")))
    harness.submit("b", one_sequence(FakeWork(num_steps=10, key="b")))
    assert harness.run_until_ended("b") <= 24


# Fair shares.


@pytest.mark.parametrize("unit_s", [0.001, 1.0])  # with the second every wait is longer than the patience
def test_tenants_share_a_long_backlog_by_weight(unit_s: float) -> None:
    model = model_with_budget(8)
    model.unit_s = unit_s
    harness = LoopHarness(model)
    for index in range(400):
        harness.submit(f"light-{index}", one_sequence(FakeWork(step_units=2)), tenant="light", weight=1.0)
    for index in range(400):
        harness.submit(f"heavy-{index}", one_sequence(FakeWork(step_units=2)), tenant="heavy", weight=3.0)
    harness.run(100)
    counted = shares(harness, 100)
    assert counted["heavy"] / counted.total() == pytest.approx(0.75, abs=0.03)


def test_tenants_share_by_weight_when_a_step_holds_one_sequence_and_all_are_out_of_patience() -> None:
    model = model_with_budget(8)
    model.unit_s = 1.0
    harness = LoopHarness(model)
    for index in range(200):
        harness.submit(f"light-{index}", one_sequence(FakeWork(step_units=8)), tenant="light", weight=1.0)
        harness.submit(f"heavy-{index}", one_sequence(FakeWork(step_units=8)), tenant="heavy", weight=3.0)
    harness.run(160)
    assert shares(harness, 160)["heavy"] / (160 * 8) == pytest.approx(0.75, abs=0.05)


def test_priorities_share_by_their_weights_and_the_lowest_does_not_starve() -> None:
    harness = LoopHarness(model_with_budget(21), patience_s=1e9)
    for priority in Priority:
        for index in range(2000):
            harness.submit(f"{priority.name}-{index}", one_sequence(FakeWork()), priority=priority)
    harness.run(100)
    counted = shares(harness, 100)
    for priority in Priority:
        assert counted[priority.name] / counted.total() == pytest.approx(priority.weight / 21.0, rel=0.1)


def test_running_divisible_work_shares_the_budget_by_weight() -> None:
    harness = LoopHarness(model_with_budget(8))
    harness.submit("light", one_sequence(FakeWork(divisible_units=10_000)), tenant="light", weight=1.0)
    harness.submit("heavy", one_sequence(FakeWork(divisible_units=10_000)), tenant="heavy", weight=3.0)
    harness.run(200)
    assert shares(harness, 200)["heavy"] / (200 * 8) == pytest.approx(0.75, abs=0.03)


def test_idleness_earns_no_credit() -> None:
    harness = LoopHarness(model_with_budget(8))
    harness.submit("busy", many_sequences(FakeWork(), 10_000), tenant="busy")
    harness.submit("late-0", one_sequence(FakeWork()), tenant="late")
    harness.run(200)
    harness.submit("late-1", many_sequences(FakeWork(), 10_000), tenant="late")
    harness.run(100)
    assert shares(harness, 100, first=200)["late"] / 800 == pytest.approx(0.5, abs=0.03)


def test_a_newcomer_earns_no_credit_from_work_that_ran_without_waiting() -> None:
    harness = LoopHarness(model_with_budget(8))
    for index in range(500):
        harness.submit(f"busy-{index}", one_sequence(FakeWork(num_steps=5)), tenant="busy")
        harness.run()
    for index in range(500):
        harness.submit(f"busy-more-{index}", one_sequence(FakeWork(num_steps=5)), tenant="busy")
        harness.submit(f"late-{index}", one_sequence(FakeWork(num_steps=5)), tenant="late")
    harness.run(100)
    assert shares(harness, 100, first=500)["late"] / 800 == pytest.approx(0.5, abs=0.05)


def test_a_tenant_with_a_small_demand_earns_no_credit_for_others() -> None:
    harness = LoopHarness(model_with_budget(8))
    harness.submit("trickle", one_sequence(FakeWork(num_steps=10_000)), tenant="trickle")
    harness.submit("busy", many_sequences(FakeWork(), 50_000), tenant="busy")
    harness.run(500)
    harness.submit("late", many_sequences(FakeWork(), 50_000), tenant="late")
    harness.run(100)
    counted = shares(harness, 100, first=500)
    assert counted["trickle"] == 100
    assert counted["late"] / counted["busy"] == pytest.approx(1.0, abs=0.1)


def test_debt_of_tenants_that_left_is_forgotten_when_it_is_paid() -> None:
    harness = LoopHarness(model_with_budget(8))
    harness.submit("stays", many_sequences(FakeWork(), 100_000), tenant="stays")
    for index in range(300):
        harness.submit(f"r{index}", one_sequence(FakeWork(step_units=5)), tenant=f"key {index}")
        harness.run(2)
    assert harness.scheduler.queue.num_tenants < 20


# Bounded waits.


def test_a_request_of_thousands_of_sequences_delays_a_small_one_by_at_most_two_steps() -> None:
    harness = LoopHarness(model_with_budget(16))
    harness.submit("huge", many_sequences(FakeWork(), 5000))
    harness.run(10)
    harness.submit("same key", one_sequence(FakeWork()))
    assert harness.run_until_ended("same key") <= 2
    harness.submit("other key", one_sequence(FakeWork()), tenant="other")
    assert harness.run_until_ended("other key") <= 2


def test_a_long_divisible_sequence_delays_a_small_one_by_at_most_two_steps() -> None:
    harness = LoopHarness(model_with_budget(16))
    harness.submit("long", one_sequence(FakeWork(divisible_units=5000)))
    harness.run(10)
    harness.submit("short", one_sequence(FakeWork(divisible_units=10)))
    assert harness.run_until_ended("short") <= 3  # the divisible part, then its step
    harness.run(1)
    assert {sequence.request_id for sequence, _units in harness.model.batches[-1]} == {"long"}


def test_an_adversary_with_a_fresh_key_each_step_delays_nobody_without_bound() -> None:
    harness = LoopHarness(model_with_budget(4), patience_s=1.0)
    harness.submit("victim", many_sequences(FakeWork(step_units=4), 3), tenant="victim", weight=0.01)
    for index in range(1000):
        harness.submit(
            f"r{index}", many_sequences(FakeWork(step_units=4), 2), tenant=f"t{index}", priority=Priority.INTERACTIVE
        )
        harness.run()
        if harness.ended_s.get("victim"):
            break
    # The patience (72 steps), then every fourth step is the oldest one's: three sequences behind at most 72 others.
    assert harness.finished("victim")
    assert len(harness.model.batches) < 72 + 4 * 75


def test_an_adversary_with_another_batch_key_delays_nobody_without_bound() -> None:
    harness = LoopHarness(model_with_budget(4), patience_s=0.5)
    harness.submit("waits", one_sequence(FakeWork(num_steps=3, key="mine")), weight=0.001)
    for index in range(600):
        harness.submit(f"r{index}", many_sequences(FakeWork(num_steps=2, key="theirs"), 4), tenant=f"t{index}")
        harness.run()
        if harness.ended_s.get("waits"):
            break
    assert harness.finished("waits")
    assert len(harness.model.batches) < 300


def test_running_work_is_not_starved_by_waiting_work_of_another_key_that_is_out_of_patience() -> None:
    harness = LoopHarness(model_with_budget(4), patience_s=0.1)
    harness.submit("runs", one_sequence(FakeWork(num_steps=20, key="mine")))
    harness.run()
    for index in range(500):
        harness.submit(f"r{index}", one_sequence(FakeWork(step_units=4, key="theirs")), tenant="theirs")
    assert harness.run_until_ended("runs") <= 100


def test_memory_goes_back_and_forth_between_two_long_sequences_without_livelock() -> None:
    harness = LoopHarness(model_with_budget(8, memory_units=100))
    for name in ("a", "b"):
        harness.submit(name, one_sequence(FakeWork(divisible_units=80, num_steps=15)), tenant=name)
    harness.run_until_idle(200)
    assert harness.finished("a")
    assert harness.finished("b")
    harness.assert_nothing_leaked()


def test_the_sequence_that_started_first_never_loses_its_memory() -> None:
    harness = LoopHarness(model_with_budget(8, memory_units=60))
    harness.submit("first", one_sequence(FakeWork(divisible_units=20, num_steps=35)), weight=0.01)
    harness.run()
    for index in range(8):
        harness.submit(f"r{index}", one_sequence(FakeWork(divisible_units=10, num_steps=30)), tenant=f"t{index}")
    state = harness.states["first"]
    harness.run_until_ended("first", 2000)
    assert state.num_preemptions == 0
    assert harness.scheduler.num_preemptions > 0
    harness.run_until_idle()
    harness.assert_nothing_leaked()


def test_a_sequence_that_outgrows_the_memory_alone_fails_instead_of_trying_for_ever() -> None:
    harness = LoopHarness(model_with_budget(8, memory_units=10))
    harness.submit("grows", one_sequence(FakeWork(num_steps=11)))
    harness.run_until_idle(100)
    assert isinstance(harness.error_of("grows"), InvalidRequest)
    assert len(harness.events["grows"]) == 11
    harness.assert_nothing_leaked()


def test_a_preempted_sequence_goes_on_where_its_client_left_off() -> None:
    harness = LoopHarness(model_with_budget(16, memory_units=20))
    for name in ("a", "b", "c"):
        harness.submit(name, one_sequence(FakeWork(divisible_units=4, num_steps=10)))
    harness.run_until_idle()
    assert harness.scheduler.num_preemptions > 0
    assert all(len(harness.events[name]) == 11 for name in ("a", "b", "c"))


def test_running_work_goes_on_although_under_overload_what_waits_has_waited_longer() -> None:
    harness = LoopHarness(model_with_budget(8, memory_units=40), patience_s=0.3, max_running_sequences=8)
    harness.submit("victim", one_sequence(FakeWork(divisible_units=30, num_steps=3)), tenant="victim", weight=0.01)
    works = (FakeWork(step_units=3, key="v"), FakeWork(divisible_units=12, key="v"))
    for index in range(400):
        harness.submit(f"r{index}", FakeInput(pieces=(FakePiece(sequences=works),)), tenant="flood")
        harness.run()
        if "victim" in harness.ended_s:
            break
    assert harness.finished("victim")


@settings(max_examples=40, deadline=None)
@given(
    victim_weight=st.sampled_from([0.01, 1.0]),
    victim=st.sampled_from(
        [FakeWork(key="v"), FakeWork(step_units=9), FakeWork(divisible_units=30, num_steps=3), FakeWork(num_steps=5)]
    ),
    flood=st.lists(
        st.builds(
            FakeWork,
            divisible_units=st.sampled_from([0, 12]),
            num_steps=st.integers(1, 3),
            step_units=st.integers(1, 6),
            key=st.sampled_from([None, "v", "x"]),
        ),
        min_size=1,
        max_size=4,
    ),
    fresh=st.booleans(),
)
def test_any_admitted_request_ends_however_much_arrives_after_it(
    victim_weight: float, victim: FakeWork, flood: list[FakeWork], fresh: bool
) -> None:
    harness = LoopHarness(model_with_budget(8, memory_units=40), patience_s=0.3, max_running_sequences=8)
    harness.submit("victim", one_sequence(victim), tenant="victim", weight=victim_weight)
    for index in range(400):
        tenant = f"t{index}" if fresh else "flood"
        sequences = FakeInput(pieces=(FakePiece(sequences=tuple(flood)),))
        harness.submit(f"r{index}", sequences, tenant=tenant, priority=Priority.INTERACTIVE)
        harness.run()
        if "victim" in harness.ended_s:
            break
    assert harness.finished("victim")
