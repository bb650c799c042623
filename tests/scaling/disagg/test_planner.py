"""When a prompt leaves the replica that answers."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from sixfold.scaling.disagg.planner import PromptShape, ReplicaLoad, SplitCosts, decide_split

COSTS = SplitCosts(kv_bytes_per_token=1e5, link_bytes_per_s=1e9)
IDLE = ReplicaLoad(prefill_tokens_per_s=10_000.0)

loads = st.builds(
    ReplicaLoad,
    prefill_tokens_per_s=st.floats(10.0, 1e6),
    queued_tokens=st.floats(0.0, 1e6),
    num_streams=st.integers(0, 512),
)
prompts = st.integers(1, 200_000).flatmap(
    lambda n: st.builds(
        PromptShape,
        num_tokens=st.just(n),
        cached_at_decode=st.integers(0, n),
        cached_at_prefill=st.integers(0, n),
    )
)


def test_a_long_prompt_leaves_a_replica_that_writes_many_answers() -> None:
    busy = replace(IDLE, num_streams=32)
    decision = decide_split(PromptShape(num_tokens=8000), busy, IDLE, COSTS)
    assert decision.split
    assert decision.local_s == 0.8 + 32 * 0.7 * 0.8
    assert decision.remote_s == 0.8 + 8000 * 1e5 / 1e9 + 0.005
    assert decision.reason == (
        "8000 uncached tokens: 18720 ms of waiting here (32 streams slowed), 1605 ms by way of a prefill replica"
    )


def test_a_prompt_that_is_nearly_all_cached_stays() -> None:
    busy = replace(IDLE, num_streams=4)
    assert not decide_split(PromptShape(num_tokens=8000, cached_at_decode=7990), busy, IDLE, COSTS).split


@given(prompt=prompts, decode=loads)
def test_without_a_prefill_replica_nothing_is_split(prompt: PromptShape, decode: ReplicaLoad) -> None:
    decision = decide_split(prompt, decode, None, COSTS)
    assert not decision.split
    assert "no prefill replica" in decision.reason


@given(prompt=prompts, speed=st.floats(10.0, 1e6))
def test_between_idle_equals_nothing_is_split(prompt: PromptShape, speed: float) -> None:
    idle = ReplicaLoad(prefill_tokens_per_s=speed)
    same = replace(prompt, cached_at_prefill=prompt.cached_at_decode)
    assert not decide_split(same, idle, idle, COSTS).split


@given(prompt=prompts, decode=loads, prefill=loads, more=st.integers(1, 100))
def test_more_streams_never_bring_a_prompt_back(
    prompt: PromptShape, decode: ReplicaLoad, prefill: ReplicaLoad, more: int
) -> None:
    busier = replace(decode, num_streams=decode.num_streams + more)
    if decide_split(prompt, decode, prefill, COSTS).split:
        assert decide_split(prompt, busier, prefill, COSTS).split


@given(prompt=prompts, decode=loads, prefill=loads, more=st.floats(1.0, 1e6))
def test_a_longer_queue_before_the_prefill_replica_never_sends_a_prompt_there(
    prompt: PromptShape, decode: ReplicaLoad, prefill: ReplicaLoad, more: float
) -> None:
    fuller = replace(prefill, queued_tokens=prefill.queued_tokens + more)
    if not decide_split(prompt, decode, prefill, COSTS).split:
        assert not decide_split(prompt, decode, fuller, COSTS).split
