"""Plays measured conversations in the simulator, and compares the order of the routing policies."""

from __future__ import annotations

import itertools
import random
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from calibrate import fit_steps, overhead
from conversations import Kind, Turn, blocks_of, draw_tokens
from timed_requests import Timed, request_body

from sixfold.scaling.gateway.inbound import read_inbound, shape_of
from sixfold.scaling.route.policy import RequestShape
from sixfold.scaling.sim.gateway_routing import gateway_policies
from sixfold.scaling.sim.replica import ReplicaProfile
from sixfold.scaling.sim.request import TraceRequest
from sixfold.scaling.sim.simulation import Rules, Simulation
from sixfold.scaling.sim.site import Site
from sixfold.scaling.spec import ScalingSpec

NUM_REPLICAS = 2
GAP_S = 600.0
"""Between two plays in the simulation; nothing is left to do by then."""
DRAWS = 1000
CONFIDENCE = 0.9
EQUAL = 0.01
"""Means that the simulator holds to differ by less than this share are no order: who knows the same chooses the same."""
SEEDS = 8
"""Simulations of a policy that draws."""
FEWEST_CONVERSATIONS = 5
"""With fewer, drawing them anew says little: every pair is a tie."""
MEASURES = ("ttft_s", "e2e_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One request of one policy.

    Attributes:
        kind: Of conversation.
        conversation: Round and number: the same for all policies.
        turn: Its place among the requests of its play: the same for all policies.
        ttft_s: To the first token.
        e2e_s: To the last.
        cached_share: Of its prompt.
    """

    kind: str
    conversation: tuple[int, int]
    turn: int
    ttft_s: float
    e2e_s: float
    cached_share: float


Plays = Mapping[str, Sequence[Played]]
"""By policy."""


def judge(measurement: dict[str, Any]) -> dict[str, Any]:
    """Simulates what was measured, and says whether the order is the same."""
    step_time = fit_steps(measurement["experiments"])
    profile = ReplicaProfile(
        step_time=step_time,
        max_step_tokens=measurement["max_step_tokens"],
        cache_tokens=measurement["cache_tokens"],
        block_tokens=measurement["block_tokens"],
        overhead_s=overhead(measurement["experiments"]),
    )
    policies = list(dict.fromkeys(play["policy"] for play in measurement["plays"]))
    measured = {policy: list(measured_plays(measurement, policy)) for policy in policies}
    simulated = {policy: list(simulated_plays(measurement, policy, profile)) for policy in policies}
    workloads = []
    for kind in dict.fromkeys(play["kind"] for play in measurement["plays"]):
        ours, theirs = of_kind(simulated, kind), of_kind(measured, kind)
        workloads.append(
            {
                "workload": kind,
                "num_requests": len(theirs[policies[0]]),
                "num_conversations": num_conversations(theirs[policies[0]]),
                "measured": {policy: figures(theirs[policy]) for policy in policies},
                "simulated": {policy: figures(ours[policy]) for policy in policies},
                "order": {measure: order(ours, theirs, measure) for measure in MEASURES},
            }
        )
    return {
        "profile": {"step_time": asdict(step_time), "overhead_s": profile.overhead_s},
        "workloads": workloads,
        "preserved": all(each["order"][measure]["preserved"] for each in workloads for measure in MEASURES),
    }


def measured_plays(measurement: dict[str, Any], policy: str) -> Iterable[Played]:
    """The requests of one policy as they were."""
    for play in measurement["plays"]:
        if play["policy"] == policy:
            pairs = zip(play["conversations"], map(Timed.of_row, play["requests"]), strict=True)
            for number, (conversation, timed) in enumerate(pairs):
                yield Played(
                    kind=play["kind"],
                    conversation=(play["round"], conversation),
                    turn=number,
                    ttft_s=timed.first_s,
                    e2e_s=timed.last_s,
                    cached_share=max(0, timed.cached_tokens) / timed.prompt_tokens,
                )


def simulated_plays(measurement: dict[str, Any], policy: str, profile: ReplicaProfile) -> Iterable[Played]:
    """The same requests in the simulator, one play after the other on the same replicas behind the same gateway."""
    plays = [play for play in measurement["plays"] if play["policy"] == policy]
    kinds = {kind["name"]: Kind(**kind) for kind in measurement["kinds"]}
    trace: list[TraceRequest] = []
    shapes: dict[TraceRequest, RequestShape] = {}
    for number, play in enumerate(plays):
        for tokens, timed in prompts(play, kinds[play["kind"]]):
            request = TraceRequest(
                arrived_s=number * GAP_S + timed.sent_s,
                prompt_tokens=timed.prompt_tokens,
                output_tokens=timed.output_tokens,
                blocks=blocks_of(tokens, profile.block_tokens),
            )
            trace.append(request)
            shapes[request] = shape_at_gateway(tokens, timed.output_tokens)
    for seed in range(SEEDS if policy == "power_of_two" else 1):
        make = gateway_policies(profile.block_tokens, seed, shapes.__getitem__)[policy]
        scaling = ScalingSpec(min_replicas=NUM_REPLICAS, max_replicas=NUM_REPLICAS)
        site = Site("site", profile, scaling, make(), num_initial=NUM_REPLICAS, now_s=0.0)
        history = Simulation([site], Rules(patience_s=GAP_S, tick_s=GAP_S)).run(sorted(trace, key=_arrival))
        jobs = {job.request: job for job in history.jobs}
        requests = iter(trace)
        for play in plays:
            for turn, conversation in enumerate(play["conversations"]):
                job = jobs[next(requests)]
                assert job.ttft_s is not None and job.e2e_s is not None
                yield Played(
                    kind=play["kind"],
                    conversation=(play["round"], conversation),
                    turn=turn,
                    ttft_s=job.ttft_s,
                    e2e_s=job.e2e_s,
                    cached_share=job.cached_tokens / job.request.prompt_tokens,
                )


def prompts(play: dict[str, Any], kind: Kind) -> Iterable[tuple[list[int], Timed]]:
    """The tokens that were sent, made again."""
    seed = f"{play['kind']}/{play['round']}/{play['policy']}"
    for conversation, row in zip(play["conversations"], play["requests"], strict=True):
        timed = Timed.of_row(row)
        turn = Turn(
            at_s=timed.sent_s,
            conversation=conversation,
            prompt_tokens=timed.prompt_tokens,
            output_tokens=timed.output_tokens,
        )
        yield draw_tokens(kind, turn, seed=seed), timed


def shape_at_gateway(tokens: Sequence[int], output_tokens: int) -> RequestShape:
    """What the gateway knew of the request."""
    inbound = read_inbound("POST", "/v1/completions", b"", {}, request_body(tokens, output_tokens))
    return shape_of(inbound, adapter=None, region=None, session=None, tenant="")


def of_kind(plays: Plays, kind: str) -> Plays:
    return {policy: [each for each in found if each.kind == kind] for policy, found in plays.items()}


def figures(played: Sequence[Played]) -> dict[str, float]:
    """Of one policy on one workload, in seconds."""
    found: dict[str, float] = {}
    for measure in MEASURES:
        times_s = [getattr(each, measure) for each in played]
        found[f"{measure.removesuffix('_s')}_mean_s"] = statistics.mean(times_s)
        found[f"{measure.removesuffix('_s')}_p50_s"] = statistics.median(times_s)
    found["cached_share"] = statistics.mean(each.cached_share for each in played)
    return found


def order(ours: Plays, theirs: Plays, measure: str) -> dict[str, Any]:
    """Both orders by the mean, the fastest first, and each pair of policies with what the measurement can tell of it."""
    pairs: list[dict[str, Any]] = []
    for one, other in itertools.combinations(theirs, 2):
        low_s, high_s = difference(theirs[one], theirs[other], measure)
        simulated_s = mean(ours[one], measure) - mean(ours[other], measure)
        tie = low_s <= 0.0 <= high_s or num_conversations(theirs[one]) < FEWEST_CONVERSATIONS
        equal = abs(simulated_s) < EQUAL * mean(ours[one], measure)
        pairs.append(
            {
                "pair": f"{one} - {other}",
                "measured_s": [low_s, high_s],
                "simulated_s": simulated_s,
                "tie": tie,
                "simulated_equal": equal,
                "agree": tie or equal or (simulated_s > 0.0) == (low_s > 0.0),
            }
        )
    return {
        "measured": sorted(theirs, key=lambda policy: mean(theirs[policy], measure)),
        "simulated": sorted(ours, key=lambda policy: mean(ours[policy], measure)),
        "pairs": pairs,
        "preserved": all(pair["agree"] for pair in pairs),
    }


def num_conversations(played: Sequence[Played]) -> int:
    return len({each.conversation for each in played})


def mean(played: Sequence[Played], measure: str) -> float:
    return statistics.mean(getattr(each, measure) for each in played)


def difference(one: Sequence[Played], other: Sequence[Played], measure: str) -> tuple[float, float]:
    """The interval of the mean difference of the same requests under two policies.

    Conversations are drawn anew with all their requests, since those depend on each other.
    """
    theirs = {(each.conversation, each.turn): getattr(each, measure) for each in other}
    by_conversation: dict[tuple[int, int], list[float]] = defaultdict(list)
    for each in one:
        by_conversation[each.conversation].append(getattr(each, measure) - theirs[each.conversation, each.turn])
    groups, draws = list(by_conversation.values()), random.Random(0)
    means = sorted(statistics.fmean(itertools.chain(*draws.choices(groups, k=len(groups)))) for _ in range(DRAWS))
    rest = (1.0 - CONFIDENCE) / 2
    return means[int(rest * DRAWS)], means[int((1.0 - rest) * DRAWS) - 1]


def _arrival(request: TraceRequest) -> float:
    return request.arrived_s
