"""Envoy's rules, told by their names."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.scaling.gateway.outlier import OutlierDetector
from sixfold.scaling.gateway.settings import OutlierSettings


def detector(count: int, **settings: float | None) -> OutlierDetector:
    made = OutlierDetector(OutlierSettings.model_validate(settings))
    made.retain([f"r{number}" for number in range(count)])
    return made


def fail(found: OutlierDetector, replica_id: str, times: int, now_s: float) -> None:
    for _time in range(times):
        found.failed(replica_id, now_s)


def test_five_failures_in_a_row_eject_for_half_a_minute_and_four_do_not() -> None:
    found = detector(10)
    fail(found, "r0", 4, 0.0)
    found.succeeded("r0")
    fail(found, "r0", 4, 0.0)
    assert found.ejected(0.0) == frozenset()
    found.failed("r0", 0.0)
    assert found.ejected(29.9) == {"r0"}
    assert found.ejected(30.0) == frozenset()


def test_each_further_ejection_lasts_longer_up_to_a_bound_and_good_times_are_remembered() -> None:
    found = detector(10, max_ejection_s=80.0)
    now_s = 0.0
    for seconds in (30.0, 60.0, 80.0, 80.0):
        fail(found, "r0", 5, now_s)
        assert found.ejected(now_s + seconds - 0.1) == {"r0"}
        now_s += seconds
        assert found.ejected(now_s) == frozenset()
    for _interval in range(4):
        now_s += 11.0
        found.ejected(now_s)
    fail(found, "r0", 5, now_s)
    assert found.ejected(now_s + 30.0) == frozenset()


def test_a_tenth_may_be_ejected_and_one_always_unless_it_is_alone() -> None:
    many = detector(20)
    for number in range(5):
        fail(many, f"r{number}", 5, 0.0)
    assert many.ejected(1.0) == {"r0", "r1"}
    two = detector(2)
    fail(two, "r0", 5, 0.0)
    fail(two, "r1", 5, 0.0)
    assert two.ejected(1.0) == {"r0"}
    alone = detector(1)
    fail(alone, "r0", 5, 0.0)
    assert alone.ejected(1.0) == frozenset()


def test_with_less_than_half_left_ejections_are_ignored() -> None:
    found = detector(4, max_ejection_percent=100)
    for number in range(2):
        fail(found, f"r{number}", 5, 0.0)
    assert found.ejected(1.0) == {"r0", "r1"}
    fail(found, "r2", 5, 1.0)
    assert found.ejected(1.0) == frozenset()


def test_a_replica_far_below_the_others_success_rate_is_ejected_at_the_sweep() -> None:
    found = detector(10)
    found.ejected(0.0)
    for number in range(10):
        for request in range(100):
            if number == 3 and request % 3 == 0:
                found.failed(f"r{number}", 1.0)
            else:
                found.succeeded(f"r{number}")
    assert found.ejected(9.9) == frozenset()
    assert found.ejected(10.0) == {"r3"}


@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(0, 11), st.booleans(), st.floats(0, 20)), max_size=200),
)
def test_whatever_happens_half_of_the_replicas_stay_and_the_share_holds(
    count: int, steps: list[tuple[int, bool, float]]
) -> None:
    found = detector(count)
    now_s = 0.0
    for number, good, gap_s in steps:
        now_s += gap_s
        replica_id = f"r{number % count}"
        if good:
            found.succeeded(replica_id)
        else:
            found.failed(replica_id, now_s)
        ejected = found.ejected(now_s)
        assert len(ejected) <= max(1, count // 10)
        assert len(ejected) * 2 <= count


def answer(
    found: OutlierDetector, replica_id: str, delay_s: float, now_s: float, times: int = 20, model: str = "chat"
) -> None:
    """So many answers after so long, the last of them now."""
    for number in range(times):
        found.sent(replica_id, number, now_s - delay_s, model=model)
        found.answered(replica_id, number, now_s)


def test_a_replica_that_is_slow_and_not_broken_is_ejected_and_one_with_a_few_long_prompts_is_not() -> None:
    found = detector(3)
    found.ejected(0.0)
    for replica_id, delay_s in (("r0", 6.0), ("r1", 1.0), ("r2", 1.1)):
        answer(found, replica_id, delay_s, 9.0)
    answer(found, "r1", 60.0, 9.0, times=5)
    assert found.ejected(10.0) == {"r0"}
    assert found.ejected(40.1) == frozenset(), "it gets its chance again"


def test_a_model_that_takes_longer_than_another_makes_nobody_slow() -> None:
    found = detector(4)
    found.ejected(0.0)
    for replica_id, delay_s, model in (
        ("r0", 6.0, "chat"),
        ("r1", 7.0, "chat"),
        ("r2", 0.02, "embed"),
        ("r3", 0.02, "embed"),
    ):
        answer(found, replica_id, delay_s, 9.0, model=model)
    assert found.ejected(10.0) == frozenset()


def test_a_replica_that_answers_its_probes_and_nothing_else_is_found_by_what_waits_there() -> None:
    found = detector(2)
    found.ejected(0.0)
    answer(found, "r1", 0.2, 9.0)
    for number in range(20):
        found.sent("r0", number, 2.0, model="chat")
    assert found.ejected(10.0) == {"r0"}


def test_what_was_given_up_and_what_has_nothing_to_compare_with_ejects_nobody() -> None:
    found = detector(2)
    found.ejected(0.0)
    answer(found, "r0", 9.0, 9.0)
    answer(found, "r1", 0.1, 9.0, times=19)
    for number in range(100, 140):
        found.sent("r1", number, 1.0, model="chat")
        found.given_up("r1", number)
    assert found.ejected(10.0) == frozenset()
    off = detector(2, slow_factor=None)
    off.ejected(0.0)
    answer(off, "r0", 9.0, 9.0)
    answer(off, "r1", 0.1, 9.0)
    assert off.ejected(10.0) == frozenset()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["r0", "r1", "r2", "r3"]), st.floats(0.0, 30.0)), max_size=120),
    st.integers(1, 100),
    st.integers(1, 30),
)
def test_however_slow_replicas_are_the_bounds_of_ejection_hold(
    delays: list[tuple[str, float]], percent: int, volume: int
) -> None:
    found = detector(4, max_ejection_percent=percent, slow_request_volume=volume)
    found.ejected(0.0)
    for number, (replica_id, delay_s) in enumerate(delays):
        found.sent(replica_id, number, 9.0 - delay_s, model="chat")
        found.answered(replica_id, number, 9.0)
    assert len(found.ejected(10.0)) <= max(1, 4 * percent // 100)
