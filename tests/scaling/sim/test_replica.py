"""What a simulated replica promises: the same times as stepping one by one, and nothing lost."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.scaling.autoscale.step_time import StepTime, attended_tokens
from sixfold.scaling.sim.replica import ReplicaProfile, SimReplica
from sixfold.scaling.sim.request import Job, Outcome, TraceRequest

STEP = StepTime(base_s=0.01, per_prefill_s=1e-4, per_row_s=1e-3, per_kv_s=1e-6, per_prefill_kv_s=1e-6)
PROFILE = ReplicaProfile(step_time=STEP, max_step_tokens=100, max_rows=4, cache_tokens=2_000, block_tokens=10)


def job(arrived_s: float, prompt: int, output: int, blocks: tuple[int, ...] = ()) -> Job:
    return Job(TraceRequest(arrived_s=arrived_s, prompt_tokens=prompt, output_tokens=output, blocks=blocks))


def serve(replica: SimReplica, jobs: list[Job], *, patience_s: float = 1e9) -> None:
    """Runs one replica until all have ended."""
    upcoming = sorted(jobs, key=lambda each: each.request.arrived_s)
    ends: list[tuple[float, int]] = []
    num_open = len(jobs)
    while num_open:
        if upcoming and (not ends or upcoming[0].request.arrived_s < ends[0][0]):
            each = upcoming.pop(0)
            end_s = replica.submit(each, each.request.arrived_s)
        else:
            now_s, version = heapq.heappop(ends)
            if version != replica.version:
                continue
            done, end_s = replica.finish_segment(now_s, now_s - patience_s)
            num_open -= len(done)
        if end_s is not None:
            heapq.heappush(ends, (end_s, replica.version))


def one_by_one(profile: ReplicaProfile, arrivals: list[tuple[float, int, int]]) -> list[tuple[float, float]]:
    """The same replica, stepped: the specification in its plainest form. First and last token of each request."""
    now_s, number = 0.0, 0
    left: dict[int, int] = {}
    tokens: dict[int, int] = {}
    waiting: list[int] = []
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    while len(last) < len(arrivals):
        while number < len(arrivals) and arrivals[number][0] <= now_s:
            waiting.append(number)
            number += 1
        rows = [each for each in tokens if each not in last]
        budget = max(1, profile.max_step_tokens - len(rows))
        plan: dict[int, int] = {}
        for each in [each for each in left if left[each]]:
            plan[each] = min(budget, left[each])
            budget -= plan[each]
        while waiting and budget > 0 and len(rows) + len([e for e in left if left[e]]) < profile.max_rows:
            each = waiting.pop(0)
            left[each] = arrivals[each][1]
            plan[each] = min(budget, left[each])
            budget -= plan[each]
        plan = {each: count for each, count in plan.items() if count}
        if not plan and not rows:
            now_s = arrivals[number][0]
            continue
        kv_tokens = sum(arrivals[each][1] + tokens[each] for each in rows)
        now_s += profile.step_time.seconds(
            prefill_tokens=sum(plan.values()),
            decode_rows=len(rows),
            kv_tokens=kv_tokens,
            prefill_kv_tokens=sum(
                attended_tokens(count, arrivals[each][1] - left[each]) for each, count in plan.items()
            ),
        )
        for each in rows:
            tokens[each] += 1
        for each, count in plan.items():
            left[each] -= count
            if not left[each]:
                first[each], tokens[each] = now_s, 1
        for each in tokens:
            if each not in last and tokens[each] >= arrivals[each][2]:
                last[each] = now_s
    return [(first[each], last[each]) for each in range(len(arrivals))]


# Two at the very same time would be one step for one of them alone, and then both: nothing that a server promises.
arrivals = st.lists(
    st.tuples(st.integers(0, 3_000_000), st.integers(1, 250), st.integers(1, 40)),
    min_size=1,
    max_size=12,
    unique_by=lambda each: each[0],
).map(lambda found: [(micros / 1e6, prompt, output) for micros, prompt, output in found])


@given(arrivals=arrivals)
@settings(max_examples=60, deadline=None)
def test_runs_of_decode_steps_take_the_times_of_single_steps(arrivals: list[tuple[float, int, int]]) -> None:
    arrivals = sorted(arrivals)
    profile = ReplicaProfile(step_time=STEP, max_step_tokens=100, max_rows=4, cache_tokens=1 << 20)
    jobs = [job(*each) for each in arrivals]
    serve(SimReplica("a", profile), jobs)
    for each, (first_s, last_s) in zip(jobs, one_by_one(profile, arrivals), strict=True):
        assert each.first_token_s == pytest.approx(first_s)
        assert each.finished_s == pytest.approx(last_s)


@given(arrivals=arrivals)
@settings(max_examples=60, deadline=None)
def test_every_request_ends_once_and_leaves_nothing_behind(arrivals: list[tuple[float, int, int]]) -> None:
    replica = SimReplica("a", PROFILE)
    jobs = [job(arrived, prompt, output, tuple(range(prompt // 10))) for arrived, prompt, output in arrivals]
    serve(replica, jobs)
    assert {each.outcome for each in jobs} == {Outcome.ANSWERED}
    assert (replica.num_running, replica.pending_units, replica.busy) == (0, 0, False)
    load = replica.load(1e6)
    assert (load.num_in_flight, load.num_waiting, load.cache_use) == (0, 0, 0)
    assert load.request_seconds == pytest.approx(sum((each.finished_s or 0) - each.request.arrived_s for each in jobs))


def test_a_cached_prefix_is_not_computed_again_but_for_its_last_token() -> None:
    replica = SimReplica("a", PROFILE)
    first, second = job(0.0, 100, 1, tuple(range(10))), job(10.0, 100, 1, tuple(range(10)))
    serve(replica, [first, second])
    assert (first.cached_tokens, second.cached_tokens) == (0, 99)
    assert first.ttft_s == pytest.approx(0.02 + 5050e-6)
    assert second.ttft_s == pytest.approx(0.0101 + 100e-6)  # it attends to what was found


def test_a_request_larger_than_the_cache_is_slow_rather_than_impossible() -> None:
    large = job(0.0, 5_000, 2)
    serve(SimReplica("a", PROFILE), [large, job(0.1, 10, 2)])
    assert large.outcome is Outcome.ANSWERED


def test_a_request_that_waits_beyond_its_clients_patience_is_given_up() -> None:
    late = job(0.5, 10, 2)
    serve(SimReplica("a", PROFILE), [job(0.0, 1_900, 90), late], patience_s=0.3)
    assert late.outcome is Outcome.EXPIRED
    assert late.first_token_s is None


def test_a_lost_replica_gives_out_all_that_it_had() -> None:
    replica = SimReplica("a", PROFILE)
    jobs = [job(0.0, 50, 5), job(0.0, 300, 5), job(0.0, 1_900, 5)]
    for each in jobs:
        replica.submit(each, 0.0)
    assert set(map(id, replica.lose(0.005))) == set(map(id, jobs))
    assert (replica.num_running, replica.pending_units, replica.busy) == (0, 0, False)
