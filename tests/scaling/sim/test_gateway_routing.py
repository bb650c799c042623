"""The gateway's policies in the simulation choose as they do in the gateway, and keep no reservation of what is over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.scaling.autoscale.step_time import StepTime
from sixfold.scaling.sim.gateway_routing import GatewayRouting, gateway_policies
from sixfold.scaling.sim.replica import ReplicaProfile, SimReplica
from sixfold.scaling.sim.request import Job, Outcome, TraceRequest
from sixfold.scaling.sim.routing import RoundRobin, RoutingPolicy
from sixfold.scaling.sim.simulation import History, Loss, Rules, Simulation
from sixfold.scaling.sim.site import Site
from sixfold.scaling.sim.traces import read_trace
from sixfold.scaling.spec import ScalingSpec

MOONCAKE = Path(__file__).parents[3] / "bench/data/traces/mooncake_conversation.csv.gz"
PROFILE = ReplicaProfile(
    step_time=StepTime(base_s=0.01, per_prefill_s=1e-4, per_row_s=1e-3, per_kv_s=0.0),
    max_step_tokens=200,
    max_rows=4,
    block_tokens=10,
)
POLICIES = gateway_policies(block_tokens=10, seed=0)


def run(
    policy: RoutingPolicy,
    trace: list[TraceRequest],
    *,
    profile: ReplicaProfile = PROFILE,
    num_replicas: int = 3,
    losses: tuple[Loss, ...] = (),
    patience_s: float = 60.0,
) -> History:
    scaling = ScalingSpec(min_replicas=num_replicas, max_replicas=num_replicas, cold_start_s=1)
    site = Site("site", profile, scaling, policy, num_initial=num_replicas, now_s=0.0)
    return Simulation([site], Rules(patience_s=patience_s, replay_streams=True), losses).run(trace)


def family_request(micros: int, blocks: int, output: int, family: int) -> TraceRequest:
    """One whose prompt begins as all of its family do."""
    return TraceRequest(
        arrived_s=micros / 1e6,
        prompt_tokens=10 * blocks + 3,
        output_tokens=output,
        blocks=tuple(1000 * family + place for place in range(blocks)),
    )


requests = st.builds(
    family_request, st.integers(0, 5_000_000), st.integers(1, 30), st.integers(1, 30), st.integers(0, 3)
)
traces = st.lists(requests, min_size=1, max_size=30).map(lambda found: sorted(found, key=lambda each: each.arrived_s))


@pytest.mark.parametrize("name", POLICIES)
@given(trace=traces, lost=st.booleans(), patience_s=st.sampled_from([0.05, 60.0]))
@settings(max_examples=25, deadline=None)
def test_nothing_stays_reserved_whatever_becomes_of_the_requests(
    name: str, trace: list[TraceRequest], lost: bool, patience_s: float
) -> None:
    policy = POLICIES[name]()
    assert isinstance(policy, GatewayRouting)
    losses = (Loss(site="site", at_s=1.0, duration_s=1.0, detect_s=0.5),) if lost else ()
    history = run(policy, trace, losses=losses, patience_s=patience_s)
    assert all(job.outcome is not Outcome.RUNNING for job in history.jobs)
    assert policy.num_open == 0


@given(trace=traces)
@settings(max_examples=25, deadline=None)
def test_in_turns_the_gateway_and_the_plain_policy_are_the_same(trace: list[TraceRequest]) -> None:
    ours, plain = run(POLICIES["round_robin"](), trace), run(RoundRobin(), trace)
    assert [job.finished_s for job in ours.jobs] == [job.finished_s for job in plain.jobs]


def chosen(policy: RoutingPolicy, replicas: list[SimReplica], job: Job) -> int:
    return policy.choose(job, replicas, 0.0).index


def test_the_work_before_the_first_token_counts_until_it_has_come() -> None:
    policy = POLICIES["power_of_two"]()
    replicas = [SimReplica("a", PROFILE), SimReplica("b", PROFILE)]
    long, short, third = (
        Job(TraceRequest(arrived_s=0.0, prompt_tokens=prompt, output_tokens=output))
        for prompt, output in ((500, 1), (10, 20), (10, 1))
    )
    first, second = chosen(policy, replicas, long), chosen(policy, replicas, short)
    assert {first, second} == {0, 1}
    policy.started(long)  # one token is left there, and thirty here
    assert chosen(policy, replicas, third) == first


@pytest.mark.parametrize("name", ["prefix", "kv"])
def test_a_prompt_goes_where_its_beginning_is_until_the_queue_there_costs_more(name: str) -> None:
    policy = POLICIES[name]()
    replicas = [SimReplica("a", PROFILE), SimReplica("b", PROFILE)]

    def job(prompt: int) -> Job:
        return Job(
            TraceRequest(arrived_s=0.0, prompt_tokens=prompt, output_tokens=50, blocks=tuple(range(prompt // 10)))
        )

    first = job(100)
    at = chosen(policy, replicas, first)
    replicas[at].cache.use(first.request.blocks)
    policy.ended(first)
    assert chosen(policy, replicas, job(120)) == at
    more = [chosen(policy, replicas, job(120)) for _ in range(20)]  # none of these ends
    assert set(more) == {0, 1}


def mean_ttft_s(make: Callable[[], RoutingPolicy], trace: list[TraceRequest], profile: ReplicaProfile) -> float:
    times = [job.ttft_s for job in run(make(), trace, profile=profile, num_replicas=4, patience_s=3600).jobs]
    return sum(each for each in times if each is not None) / len(times)


def test_the_gateways_cache_aware_policies_beat_round_robin_on_real_conversations() -> None:
    step = StepTime(base_s=0.0065, per_prefill_s=2.17e-5, per_row_s=0.0, per_kv_s=4.1e-8)
    profile = ReplicaProfile(step_time=step, max_step_tokens=8192, block_tokens=512)
    trace = list(read_trace(MOONCAKE, limit=2000))
    policies = gateway_policies(block_tokens=512, seed=0)
    turns = mean_ttft_s(policies["round_robin"], trace, profile)
    assert mean_ttft_s(policies["prefix"], trace, profile) < 0.95 * turns
    assert mean_ttft_s(policies["kv"], trace, profile) < 0.95 * turns
