"""Every policy, by what it promises about where requests go."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.scaling.route.affinity import Affinity
from sixfold.scaling.route.coming import ComingPrompts
from sixfold.scaling.route.hash_ring import BoundedHash
from sixfold.scaling.route.kv_aware import KvAware
from sixfold.scaling.route.kv_events import BlockStored
from sixfold.scaling.route.kv_index import KvIndex
from sixfold.scaling.route.load import PowerOfTwo, RoundRobin
from sixfold.scaling.route.policy import Candidate, Decision, Policy, RequestShape
from sixfold.scaling.route.prefix import BLOCK_BYTES, PrefixAffinity, hash_blocks
from sixfold.scaling.route.router import ReplicaFacts, Router

POLICIES: dict[str, Callable[[], Policy]] = {
    "round robin": RoundRobin,
    "power of two": lambda: PowerOfTwo(Random(1)),
    "hash": BoundedHash,
    "prefix": PrefixAffinity,
    "kv": lambda: KvAware(KvIndex(), PrefixAffinity()),
    "affinity": lambda: Affinity(PrefixAffinity()),
}
loads = st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1e6)), min_size=1, max_size=8)
shapes = st.builds(
    RequestShape,
    model=st.just("m"),
    prompt_units=st.integers(1, 10_000),
    output_units=st.integers(0, 1000),
    blocks=st.lists(st.integers(0, 5), max_size=6).map(tuple),
    session=st.sampled_from((None, "a", "b")),
    adapter=st.sampled_from((None, "ink")),
    region=st.sampled_from((None, "eu")),
)


def replicas(count: int) -> list[ReplicaFacts]:
    return [ReplicaFacts(replica_id=f"r{number}") for number in range(count)]


def prompt(*, text: str, units: int = 1000, session: str | None = None) -> RequestShape:
    return RequestShape(model="m", prompt_units=units, blocks=hash_blocks([text.encode()]), session=session)


def candidates(of: Sequence[tuple[int, float]]) -> list[Candidate]:
    return [
        Candidate(replica_id=f"r{number}", num_running=running, pending_units=units)
        for number, (running, units) in enumerate(of)
    ]


@pytest.mark.parametrize("name", POLICIES)
@given(shape=shapes, load=loads)
def test_every_policy_chooses_one_of_the_candidates(
    name: str, shape: RequestShape, load: list[tuple[int, float]]
) -> None:
    choice = POLICIES[name]().choose(shape, candidates(load), 0.0)
    assert 0 <= choice.index < len(load)
    assert 0.0 <= choice.cached <= 1.0


@pytest.mark.parametrize("name", POLICIES)
@given(steps=st.lists(st.tuples(shapes, st.sampled_from(("complete", "fail", "start", "keep"))), max_size=40))
def test_loads_are_those_of_the_open_decisions_and_nothing_is_left_at_the_end(
    name: str, steps: list[tuple[RequestShape, str]]
) -> None:
    router = Router(POLICIES[name]())
    fleet = replicas(3)
    kept: list[Decision] = []
    for now_s, (shape, then) in enumerate(steps):
        decision = router.select(shape, fleet, float(now_s))
        if then == "keep":
            kept.append(decision)
        elif then == "start":
            router.started(decision)
            kept.append(decision)
        elif then == "fail":
            router.fail(decision)
            router.fail(decision)
        else:
            router.complete(decision)
            router.started(decision)
        assert router.num_open == len(kept)
        of_each = Counter(each.replica_id for each in kept)
        assert all(router.num_running(each.replica_id) == of_each[each.replica_id] for each in fleet)
    for decision in kept:
        router.complete(decision)
    assert router.num_open == 0
    router.retain(())


def test_equal_requests_of_one_moment_spread_although_none_has_begun() -> None:
    router = Router(PrefixAffinity())
    chosen = Counter(router.select(prompt(text="x" * 1000), replicas(4), 0.0).replica_id for _request in range(40))
    assert set(chosen.values()) == {10}


def test_power_of_two_follows_weights_and_avoids_the_busiest() -> None:
    policy = PowerOfTwo(Random(3))
    busy = [Candidate(replica_id="a", pending_units=9.0), Candidate(replica_id="b"), Candidate(replica_id="c")]
    assert {policy.choose(prompt(text=""), busy, 0.0).index for _draw in range(100)} == {1, 2}
    router = Router(PowerOfTwo(Random(3)))
    fleet = [ReplicaFacts(replica_id="big", weight=3.0), ReplicaFacts(replica_id="small")]
    chosen = Counter(router.select(prompt(text=""), fleet, 0.0).replica_id for _request in range(400))
    assert chosen["big"] == pytest.approx(300, abs=10)


@given(load=st.lists(st.integers(0, 30), min_size=2, max_size=6), key=st.text(min_size=1, max_size=5))
def test_a_hashed_key_never_goes_to_a_replica_that_is_beyond_its_bound(load: list[int], key: str) -> None:
    choice = BoundedHash(slack=1.25).choose(
        RequestShape(model="m", session=key), candidates([(each, 0.0) for each in load]), 0.0
    )
    assert load[choice.index] < 1.25 * (sum(load) + 1) / len(load) + 1


def test_when_a_replica_goes_only_its_keys_move() -> None:
    policy = BoundedHash()

    def home(key: int, ids: Sequence[str]) -> str:
        of = [Candidate(replica_id=each) for each in ids]
        return ids[policy.choose(RequestShape(model="m", session=str(key)), of, 0.0).index]

    before = {key: home(key, ("a", "b", "c", "d")) for key in range(300)}
    after = {key: home(key, ("a", "b", "d")) for key in range(300)}
    assert {before[key] for key in before if before[key] != after[key]} == {"c"}


def test_a_growing_prompt_follows_its_beginning() -> None:
    router = Router(PrefixAffinity())
    text = "".join(str(number) for number in range(2000))
    first = router.select(prompt(text=text[:3000]), replicas(4), 0.0)
    router.complete(first)
    other = router.select(prompt(text="y" * 3000), replicas(4), 0.0)
    router.complete(other)
    grown = router.select(prompt(text=text[:3500]), replicas(4), 1.0)
    assert grown.replica_id == first.replica_id != other.replica_id
    assert grown.reason == "cached"
    assert grown.cached == pytest.approx(3000 / 3500, abs=0.05)


def test_a_queue_that_costs_more_than_the_cache_saves_sends_the_prompt_elsewhere() -> None:
    router = Router(PrefixAffinity())
    shape = prompt(text="z" * 4000, units=1000)
    home = router.select(shape, replicas(2), 0.0)
    router.started(home)  # nothing waits there but what it decodes: it has output_units 0
    for _request in range(3):  # each adds about nothing, since all is cached
        assert router.select(shape, replicas(2), 0.0).replica_id == home.replica_id
    busy = [Candidate(replica_id=each, pending_units=2000.0 * (each == home.replica_id)) for each in ("r0", "r1")]
    policy = PrefixAffinity()
    policy.routed(shape, home.replica_id, 0.0)
    choice = policy.choose(shape, busy, 0.0)
    assert busy[choice.index].replica_id != home.replica_id
    assert choice.reason == "elsewhere"


def test_a_replica_that_began_anew_holds_nothing() -> None:
    policy = PrefixAffinity()
    shape = prompt(text="z" * 4000)
    policy.routed(shape, "r1", 0.0)
    assert policy.choose(shape, candidates([(0, 0.0)] * 2), 0.0).index == 1
    policy.forget("r1")
    assert policy.choose(shape, candidates([(0, 0.0)] * 2), 0.0).cached == 0.0


def test_of_what_was_sent_the_longest_unused_is_forgotten_first_and_heads_of_prompts_last() -> None:
    policy = PrefixAffinity(max_blocks=4)
    old, new = prompt(text="a" * 4 * BLOCK_BYTES), prompt(text="b" * 2 * BLOCK_BYTES)
    policy.routed(old, "r0", 0.0)
    policy.routed(new, "r0", 1.0)
    one = candidates([(0, 0.0)])
    assert policy.choose(new, one, 2.0).cached == 1.0
    assert policy.choose(old, one, 2.0).cached == 0.5  # its head


@given(cuts=st.lists(st.integers(0, 900), max_size=5))
def test_where_a_prompts_text_is_cut_changes_no_hash(cuts: list[int]) -> None:
    text = bytes(number % 251 for number in range(900))
    places = [0, *sorted(cuts), 900]
    parts = [text[start:end] for start, end in itertools.pairwise(places)]
    assert hash_blocks(parts) == hash_blocks([text])
    assert hash_blocks([text], root=b"another model") != hash_blocks([text])
    assert len(hash_blocks([text])) == 900 // BLOCK_BYTES


def test_a_session_stays_until_it_is_forgotten_or_its_replica_is_a_hot_spot() -> None:
    policy = Affinity(RoundRobin(), session_ttl_s=60.0)
    shape = RequestShape(model="m", session="s")
    policy.routed(shape, "r1", 0.0)
    calm = candidates([(0, 0.0)] * 3)
    assert policy.choose(shape, calm, 30.0).reason == "session"
    assert policy.choose(shape, calm, 30.0).index == 1
    assert policy.choose(shape, calm, 61.0).reason == "round_robin"
    assert policy.choose(shape, candidates([(0, 0.0), (50, 0.0), (0, 0.0)]), 30.0).reason == "round_robin"


def test_a_session_is_remembered_in_few_bytes_however_long_its_name_is() -> None:
    policy = Affinity(RoundRobin())
    tracemalloc.start()
    for number in range(50):
        policy.routed(RequestShape(model="m", session=f"{number}{'x' * 60_000}"), "r1", 0.0)
    held_bytes, _peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held_bytes < 100_000


def test_the_longest_silent_session_makes_room() -> None:
    policy = Affinity(RoundRobin(), max_sessions=1)
    for session in ("a", "b"):
        policy.routed(RequestShape(model="m", session=session), "r1", 0.0)
    calm = candidates([(0, 0.0)] * 2)
    assert policy.choose(RequestShape(model="m", session="a"), calm, 0.0).reason == "round_robin"
    assert policy.choose(RequestShape(model="m", session="b"), calm, 0.0).reason == "session"


def test_an_adapter_goes_where_it_is_loaded_and_a_request_to_its_region() -> None:
    of = [
        Candidate(replica_id="a", region="us", pending_units=0.0),
        Candidate(replica_id="b", region="eu", pending_units=10.0),
        Candidate(replica_id="c", region="us", pending_units=20.0, adapters=frozenset({"ink"})),
    ]
    policy = Affinity(PrefixAffinity())
    assert policy.choose(RequestShape(model="m", adapter="ink"), of, 0.0).index == 2
    assert policy.choose(RequestShape(model="m", region="eu"), of, 0.0).index == 1
    assert policy.choose(RequestShape(model="m", region="asia", adapter="oil"), of, 0.0).index == 0


def test_known_caches_are_preferred_to_guessed_ones() -> None:
    index = KvIndex()
    tokens = tuple(range(64))
    index.apply(
        "r1",
        [BlockStored(block_hashes=(1, 2, 3, 4), parent_block_hash=None, token_ids=tokens, block_size=16)],
    )
    policy = KvAware(index, PrefixAffinity())
    shape = RequestShape(model="m", prompt_units=80, blocks=(7,), token_ids=(*tokens, *range(16)))
    policy.routed(shape, "r0", 0.0)
    policy.computed(shape, "r0")  # the guess would still say r0
    choice = policy.choose(shape, candidates([(0, 0.0)] * 2), 0.0)
    assert (choice.index, choice.cached) == (1, 64 / 80)
    policy.forget("r1")
    assert policy.choose(shape, candidates([(0, 0.0)] * 2), 0.0).index == 0


def test_a_prompt_on_its_way_counts_as_held_until_its_replica_can_have_told() -> None:
    index = KvIndex()
    one = BlockStored(block_hashes=(1,), parent_block_hash=None, token_ids=tuple(range(100, 116)), block_size=16)
    index.apply("r0", [one])  # r0 announces, and this prompt is not there
    router = Router(KvAware(index, PrefixAffinity()))
    beginning = hash_blocks([b"x" * 2 * BLOCK_BYTES])
    first = RequestShape(model="m", prompt_units=64, blocks=beginning, token_ids=tuple(range(64)))
    more = hash_blocks([b"x" * 4 * BLOCK_BYTES])
    longer = RequestShape(model="m", prompt_units=1000, blocks=more, token_ids=tuple(range(1000)))

    sent = router.select(first, replicas(2), 0.0)
    follower = router.select(longer, replicas(2), 0.0)
    assert (follower.replica_id, follower.cached) == (sent.replica_id, 0.5)

    router.started(sent)  # computed, and nothing was announced: the replica did not keep it
    router.fail(follower)
    assert router.select(longer, replicas(2), 0.0).cached == 0.0


class Watched(KvAware):
    """Counts what it is told."""

    def __init__(self) -> None:
        super().__init__(KvIndex(), PrefixAffinity())
        self.open: Counter[tuple[RequestShape, str]] = Counter()

    def routed(self, request: RequestShape, replica_id: str, now_s: float) -> None:
        super().routed(request, replica_id, now_s)
        self.open[replace(request, token_ids=None), replica_id] += 1

    def computed(self, request: RequestShape, replica_id: str) -> None:
        super().computed(request, replica_id)
        self.open[request, replica_id] -= 1


@given(steps=st.lists(st.tuples(shapes, st.sampled_from(("complete", "fail", "start", "keep", "forget"))), max_size=40))
def test_each_prompt_on_its_way_ends_exactly_once(steps: list[tuple[RequestShape, str]]) -> None:
    policy = Watched()
    router = Router(policy)
    decisions: list[Decision] = []
    for shape, then in steps:
        decisions.append(decision := router.select(shape, replicas(3), 0.0))
        if then == "forget":
            router.forget(decision.replica_id)
        elif then != "keep":
            {"complete": router.complete, "fail": router.fail, "start": router.started}[then](decision)
    for decision in decisions:
        router.started(decision)
        router.complete(decision)
    assert not any(policy.open.values())


@given(sent=st.lists(st.tuples(shapes, st.sampled_from(("r0", "r1"))), max_size=20), draw=st.randoms())
def test_of_prompts_that_all_were_computed_nothing_is_remembered(
    sent: list[tuple[RequestShape, str]], draw: Random
) -> None:
    coming = ComingPrompts()
    for shape, replica_id in sent:
        coming.routed(shape, replica_id)
        assert coming.share(shape, replica_id) == (1.0 if shape.blocks else 0.0)
    for shape, replica_id in draw.sample(sent, len(sent)):
        coming.computed(shape, replica_id)
        coming.computed(shape, "unknown")
    assert len(coming) == 0
