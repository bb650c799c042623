"""Rollouts: what must hold for every course of events."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sixfold.scaling.rollout.decide import Phase, Rollout, Sight, Tally, advance
from sixfold.scaling.spec import RolloutSpec

CANARY = RolloutSpec(kind="canary", steps=(0.1, 0.5), step_s=10, min_requests=5, max_error_rate=0.1)
GREEN = RolloutSpec(kind="blue_green", step_s=10, min_requests=5)
WELL = Sight(num_up=2, num_wanted=2)


def walk(spec: RolloutSpec, *seen: tuple[float, Sight]) -> Rollout:
    state = Rollout(since_s=0.0)
    for now_s, sight in seen:
        state = advance(spec, state, sight, now_s)
    return state


def answered(num_requests: int, num_failed: int = 0, *, old: Tally | None = None) -> Sight:
    return replace(WELL, new=Tally(num_requests=num_requests, num_failed=num_failed), old=old or Tally())


def test_a_canary_takes_its_shares_in_turn_and_then_all_and_the_old_ones_may_go() -> None:
    state = Rollout(since_s=0.0)
    shares: list[tuple[Phase, float]] = []
    for tick in range(5):
        state = advance(CANARY, state, answered(10 * tick), 10.0 * tick)
        shares.append((state.phase, state.share(CANARY)))
    shifting, done = Phase.SHIFTING, Phase.DONE
    assert shares == [(shifting, 0.1), (shifting, 0.5), (shifting, 1.0), (done, 1.0), (done, 1.0)]


def test_blue_green_takes_all_at_once_and_is_watched_before_the_old_ones_go() -> None:
    assert walk(GREEN, (0, WELL)).share(GREEN) == 1.0
    assert walk(GREEN, (0, WELL), (9, answered(100))).phase is Phase.SHIFTING
    assert walk(GREEN, (0, WELL), (10, answered(100))).phase is Phase.DONE


def test_nothing_is_sent_to_new_replicas_before_all_of_them_are_up() -> None:
    assert walk(GREEN, (0, Sight(num_up=1, num_wanted=2))).share(GREEN) == 0.0


@pytest.mark.parametrize(
    ("sight", "now_s", "reason"),
    [
        (Sight(num_up=0, num_wanted=2, broken="no such file"), 1, "no such file"),
        (Sight(num_up=1, num_wanted=2), 2000, "1 of 2 new replicas are up after 1800 s"),
    ],
)
def test_new_replicas_that_do_not_come_up_go_again(sight: Sight, now_s: float, reason: str) -> None:
    state = walk(GREEN, (now_s, sight))
    assert (state.phase, state.share(GREEN)) == (Phase.ROLLED_BACK, 0.0)
    assert reason in state.reason


@pytest.mark.parametrize(
    ("sight", "reason"),
    [
        (Sight(num_up=0, num_wanted=2), "all new replicas are lost"),
        (answered(1, 1), "1 of 1 requests failed"),
        (answered(100, 11), "11 of 100 requests failed"),
    ],
)
def test_new_replicas_that_do_badly_go_again_at_once(sight: Sight, reason: str) -> None:
    state = walk(CANARY, (0, WELL), (1, sight))
    assert state.phase is Phase.ROLLED_BACK
    assert reason in state.reason


def test_failures_that_the_old_ones_have_as_well_are_nobodys_fault() -> None:
    old = Tally(num_requests=100, num_failed=50)
    assert walk(CANARY, (0, WELL), (1, answered(100, 55, old=old))).phase is Phase.SHIFTING


def test_where_few_requests_come_ten_times_the_time_is_proof() -> None:
    assert walk(GREEN, (0, WELL), (99, answered(4))).phase is Phase.SHIFTING
    assert walk(GREEN, (0, WELL), (100, answered(4))).phase is Phase.DONE


def test_a_lost_replica_holds_a_rollout_up_and_does_not_end_it() -> None:
    one = replace(answered(100), num_up=1)
    assert walk(GREEN, (0, WELL), (500, one)).phase is Phase.SHIFTING


def test_steps_that_do_not_rise_are_refused() -> None:
    with pytest.raises(ValidationError, match="steps must rise"):
        RolloutSpec(kind="canary", steps=(0.5, 0.1))


events = st.lists(
    st.tuples(
        st.floats(0, 40),
        st.integers(0, 2),
        st.integers(0, 30),
        st.integers(0, 3),
        st.integers(0, 30),
        st.booleans(),
    ),
    max_size=40,
)


@settings(deadline=None)  # a busy machine is no counterexample
@given(events, st.sampled_from([CANARY, GREEN]))
def test_for_every_course_of_events(course: list[tuple[float, int, int, int, int, bool]], spec: RolloutSpec) -> None:
    state, now_s, new, old = Rollout(since_s=0.0), 0.0, Tally(), Tally()
    steps_s: list[tuple[float, float]] = []
    for wait_s, num_up, num_new, num_failed, num_old, breaks in course:
        now_s += wait_s
        new = Tally(num_requests=new.num_requests + num_new, num_failed=new.num_failed + min(num_new, num_failed))
        old = Tally(num_requests=old.num_requests + num_old, num_failed=old.num_failed)
        broken = "broken" if breaks and num_up == 0 else None
        sight = Sight(num_up=num_up, num_wanted=2, new=new, old=old, broken=broken)
        before, state = state, advance(spec, state, sight, now_s)
        if before.is_over:
            assert state == before, "what is over stays as it is"
        if state.phase is Phase.ROLLED_BACK:
            assert state.share(spec) == 0.0
        else:
            assert state.share(spec) >= before.share(spec), "a share never falls but to nothing"
            assert state.share(spec) == 0.0 or num_up > 0 or before.is_over, "no request goes where nobody is"
        if state.share(spec) > before.share(spec):
            assert num_up == 2, "no step is taken while a replica is missing"
            steps_s.append((now_s, state.share(spec)))
    assert all(later - earlier >= spec.step_s for (earlier, _), (later, _) in pairwise(steps_s))
    if state.phase is Phase.DONE:
        assert [share for _, share in steps_s] == list(spec.shares), "no step is left out"
