"""Prefill and decode replicas: both equally busy, never more than allowed, and steady."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.scaling.autoscale.roles import (
    RoleDemand,
    Roles,
    RoleSpeed,
    bounded,
    decode_gap_s,
    decode_rows,
    prefill_speed,
    size_roles,
)
from sixfold.scaling.autoscale.step_time import Measured, StepTime, attended_tokens, fit
from sixfold.scaling.spec import RoleSpec, RolesSpec

STEP = StepTime(base_s=0.01, per_prefill_s=1e-4, per_row_s=1e-4, per_kv_s=1e-7)
EVEN = RoleSpeed(prefill_tokens_per_s=1.0, decode_tokens_per_s=1.0)


def spec_of(max_replicas: int, **fields: object) -> RolesSpec:
    return RolesSpec.model_validate(
        {"max_replicas": max_replicas, "ttft_s": 1, "inter_token_s": 0.05, "target_utilization": 1, **fields}
    )


def asked(prefill: float, decode: float) -> RoleDemand:
    return RoleDemand(prefill_tokens_per_s=prefill, decode_tokens_per_s=decode)


def sizes(roles: Roles) -> tuple[int, int]:
    return roles.num_prefill, roles.num_decode


def test_a_replica_decodes_as_many_rows_as_keep_the_promised_gap() -> None:
    assert decode_rows(STEP, mean_context_tokens=1000, inter_token_s=0.03, max_rows=256) == 100
    assert decode_gap_s(STEP, mean_context_tokens=1000, rows=100) == pytest.approx(0.03)
    assert decode_rows(STEP, mean_context_tokens=1000, inter_token_s=0.03, max_rows=8) == 8
    assert decode_rows(STEP, mean_context_tokens=1000, inter_token_s=0.001, max_rows=256) == 1


def test_a_replica_computes_prompts_in_full_steps() -> None:
    assert prefill_speed(STEP, mean_prompt_tokens=1000, max_step_tokens=2000) == pytest.approx(2000 / 0.21)


def test_long_prompts_get_prefill_replicas_and_long_answers_decode_replicas() -> None:
    speed = RoleSpeed(prefill_tokens_per_s=10_000, decode_tokens_per_s=2_000)
    assert sizes(size_roles(spec_of(20), asked(50_000, 1_000), speed)) == (5, 1)
    assert sizes(size_roles(spec_of(20), asked(5_000, 10_000), speed)) == (1, 5)


def test_a_shortage_is_shared_by_both_roles() -> None:
    roles = size_roles(spec_of(8), asked(30, 10), EVEN)
    assert sizes(roles) == (6, 2)
    assert "only 8 may run" in roles.reason


def test_bounds_of_a_role_hold_before_both_are_equally_short() -> None:
    assert sizes(size_roles(spec_of(8, prefill={"max_replicas": 2}), asked(30, 10), EVEN)) == (2, 6)
    assert sizes(size_roles(spec_of(8, decode={"min_replicas": 5}), asked(30, 10), EVEN)) == (3, 5)


def test_in_a_shortage_no_replica_changes_its_role_for_little() -> None:
    runs = Roles(num_prefill=4, num_decode=4)
    assert sizes(size_roles(spec_of(8), asked(21, 19), EVEN, current=runs)) == (4, 4)
    assert sizes(size_roles(spec_of(8), asked(30, 10), EVEN, current=runs)) == (6, 2)


def test_where_all_run_that_may_a_demand_around_a_whole_number_moves_no_replica_to_and_fro() -> None:
    runs = Roles(num_prefill=4, num_decode=4)
    for prefill, decode in ((2.95, 4.05), (3.05, 3.95)) * 4:
        runs = size_roles(spec_of(8), asked(prefill, decode), EVEN, current=runs)
        assert sizes(runs) == (4, 4)
    assert sizes(size_roles(spec_of(8), asked(2.0, 5.5), EVEN, current=runs)) == (2, 6)


demands = st.floats(0, 1e6, allow_nan=False)


@st.composite
def specs(draw: st.DrawFn) -> RolesSpec:
    least = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    most = [draw(st.none() | st.integers(fewest, 12)) for fewest in least]
    roles = [RoleSpec(min_replicas=fewest, max_replicas=limit) for fewest, limit in zip(least, most, strict=True)]
    return spec_of(draw(st.integers(sum(least), 16)), prefill=roles[0], decode=roles[1])


def within(spec: RolesSpec, roles: Roles) -> bool:
    return (
        roles.total <= spec.max_replicas
        and spec.prefill.min_replicas <= roles.num_prefill <= (spec.prefill.max_replicas or spec.max_replicas)
        and spec.decode.min_replicas <= roles.num_decode <= (spec.decode.max_replicas or spec.max_replicas)
    )


@given(specs(), demands, demands, st.integers(1, 20), st.integers(1, 20))
def test_whatever_is_asked_for_both_roles_stay_within_what_was_declared(
    spec: RolesSpec, prefill: float, decode: float, num_prefill: int, num_decode: int
) -> None:
    speed = RoleSpeed(prefill_tokens_per_s=1000.0, decode_tokens_per_s=100.0)
    runs = Roles(num_prefill=num_prefill, num_decode=num_decode)
    assert within(spec, size_roles(spec, asked(prefill, decode), speed))
    assert within(spec, size_roles(spec, asked(prefill, decode), speed, current=runs))
    assert within(spec, bounded(spec, runs))


@given(specs(), demands, demands, demands)
def test_more_demand_of_a_role_never_takes_a_replica_of_it_away(
    spec: RolesSpec, prefill: float, more: float, decode: float
) -> None:
    speed = RoleSpeed(prefill_tokens_per_s=1000.0, decode_tokens_per_s=100.0)
    before, after = (size_roles(spec, asked(each, decode), speed) for each in (prefill, prefill + more))
    assert after.num_prefill >= before.num_prefill
    assert after.total >= before.total
    before, after = (size_roles(spec, asked(decode, each), speed) for each in (prefill, prefill + more))
    assert after.num_decode >= before.num_decode
    assert after.total >= before.total


@given(st.integers(1, 5_000), st.integers(1, 200), st.integers(0, 500_000))
def test_several_decode_steps_take_what_they_take_one_by_one(steps: int, rows: int, kv_tokens: int) -> None:
    total = STEP.decode_seconds(steps, decode_rows=rows, kv_tokens=kv_tokens)
    if steps <= 50:
        one_by_one = sum(
            STEP.seconds(prefill_tokens=0, decode_rows=rows, kv_tokens=kv_tokens + step * rows) for step in range(steps)
        )
        assert total == pytest.approx(one_by_one)
    assert STEP.decode_steps(total, decode_rows=rows, kv_tokens=kv_tokens) == steps


def test_a_fit_finds_the_coefficients_that_made_the_measurements() -> None:
    work = [
        (1, 0, 1, 100, 0),
        (1, 0, 8, 4_000, 0),
        (1, 512, 0, 0, attended_tokens(512, 0)),
        (1, 128, 4, 900, attended_tokens(128, 1_000)),
        (50, 0, 400, 90_000, 0),
        (1, 0, 32, 50_000, 0),
        (1, 2_048, 0, 0, attended_tokens(2_048, 0)),
    ]
    measured = [
        Measured(
            steps=steps,
            prefill_tokens=prefill,
            decode_rows=rows,
            kv_tokens=kv,
            prefill_kv_tokens=prefill_kv,
            seconds=0.01 * steps + 1e-4 * prefill + 1e-4 * rows + 1e-7 * kv + 3e-8 * prefill_kv,
        )
        for steps, prefill, rows, kv, prefill_kv in work
    ]
    found = fit(measured)
    assert found.per_prefill_kv_s == pytest.approx(3e-8)
    assert [found.predict(point) for point in measured] == pytest.approx([point.seconds for point in measured])
    assert found.base_s == pytest.approx(STEP.base_s)
    assert found.per_prefill_s == pytest.approx(STEP.per_prefill_s)
    assert found.per_row_s == pytest.approx(STEP.per_row_s)
    assert found.per_kv_s == pytest.approx(STEP.per_kv_s)


def test_a_fit_never_gives_time_back() -> None:
    measured = [
        Measured(prefill_tokens=0, decode_rows=rows, kv_tokens=1000 * rows, seconds=0.01 * (1 + 0.1 * (rows % 2)))
        for rows in range(1, 9)
    ]
    found = fit(measured)
    assert min(found.base_s, found.per_prefill_s, found.per_row_s, found.per_kv_s) >= 0.0


def test_a_fit_of_too_little_says_so() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        fit([Measured(prefill_tokens=1, decode_rows=0, kv_tokens=0, seconds=1.0)])
    with pytest.raises(ValueError, match="nothing was measured"):
        fit([])


def test_work_that_was_not_measured_is_taken_to_cost_nothing() -> None:
    measured = [
        Measured(prefill_tokens=0, decode_rows=rows, kv_tokens=0, seconds=0.01 + 1e-3 * rows) for rows in (1, 8)
    ]
    found = fit(measured)
    assert (found.base_s, found.per_row_s) == pytest.approx((0.01, 1e-3))
    assert (found.per_prefill_s, found.per_kv_s, found.per_prefill_kv_s) == (0.0, 0.0, 0.0)


@given(st.integers(1, 2_000), st.integers(1, 300), st.integers(0, 1_000))
def test_a_prompt_attends_to_the_same_tokens_in_whatever_chunks_it_is_computed(
    num_tokens: int, chunk: int, num_cached: int
) -> None:
    starts = range(0, num_tokens, chunk)
    in_chunks = sum(attended_tokens(min(chunk, num_tokens - start), num_cached + start) for start in starts)
    assert in_chunks == attended_tokens(num_tokens, num_cached)
    assert in_chunks == sum(num_cached + place + 1 for place in range(num_tokens))
