"""Cached blocks in host memory: what comes back is what went, and events say what can be found in either place."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sixfold.core.errors import ConfigError
from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.generation import CompletionInput, SamplingParams
from sixfold.plugins.llm.kv_cache import KvCache, LayerShape
from sixfold.plugins.llm.model import TransformersModel
from sixfold.plugins.llm.prefix_sharing import PrefixSharing
from sixfold.plugins.llm.swap_cost import SwapCost
from tests.plugins.llm.conftest import Driver, load_folder

BLOCK_SIZE = 2
LAYERS = (LayerShape(num_kv_heads=1, head_dim=2), LayerShape(num_kv_heads=2, head_dim=1))


def make_cache(num_blocks: int, num_kept: int, device: str = "cpu") -> KvCache:
    cache = KvCache(
        LAYERS, num_blocks=num_blocks, block_size=BLOCK_SIZE, dtype=torch.float32, device=torch.device(device)
    )
    cache.keep_on_host(num_kept * cache.num_bytes // num_blocks)
    return cache


def tokens(text: str) -> CachedTokens:
    return CachedTokens([ord(char) for char in text], salt=b"")


def value(sequence: CachedTokens, position: int) -> float:
    """What a model writes for a token depends on all before it."""
    number = 7
    for token in sequence.token_ids[: position + 1]:
        number = (number * 31 + token) % 65_521
    return float(number)


def write(cache: KvCache, sequence: CachedTokens, num_tokens: int) -> None:
    """Stands for a step."""
    for position in range(sequence.num_computed, sequence.num_computed + num_tokens):
        block = int(sequence.block_table[position // BLOCK_SIZE])
        for layer, tensor in enumerate(cache.tensors):
            tensor[block, :, :, position % BLOCK_SIZE] = value(sequence, position) + layer
    sequence.num_computed += num_tokens
    cache.publish(sequence)


def compute(cache: KvCache, text: str) -> CachedTokens:
    """Runs a whole sequence; the blocks stay with it."""
    sequence = tokens(text)
    granted = cache.reserve(sequence, len(text))
    assert granted == sequence.num_uncomputed
    write(cache, sequence, granted)
    return sequence


def check(cache: KvCache, sequence: CachedTokens) -> None:
    for position in range(sequence.num_computed):
        block = int(sequence.block_table[position // BLOCK_SIZE])
        for layer, tensor in enumerate(cache.tensors):
            assert (tensor[block, :, :, position % BLOCK_SIZE] == value(sequence, position) + layer).all()


class Known:
    """What a router believes can be found."""

    def __init__(self, cache: KvCache) -> None:
        self.contents: dict[bytes, bytes] = {}  # with the one before
        cache.prefix.listener = self

    def stored(
        self, hashes: Sequence[bytes], parent: bytes, token_ids: Sequence[int], adapter: str | None = None
    ) -> None:
        assert len(token_ids) == len(hashes) * BLOCK_SIZE
        for content in hashes:
            assert content not in self.contents
            self.contents[content] = parent
            parent = content

    def removed(self, content: bytes) -> None:
        del self.contents[content]


class TierMachine(RuleBasedStateMachine):
    """Sequences over two letters start, grow and end in a small cache with a small tier behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = make_cache(num_blocks=8, num_kept=5)
        self.known = Known(self.cache)
        self.live: list[CachedTokens] = []

    @rule(text=st.text("ab", min_size=1, max_size=13), num_tokens=st.integers(1, 13))
    def start(self, text: str, num_tokens: int) -> None:
        sequence = tokens(text)
        num_found = self.cache.prefix.num_found(sequence)
        hashes = PrefixSharing(mode="shared", block_size=BLOCK_SIZE).hashes(sequence.token_ids[:-1], b"")
        known = [content in self.known.contents for content in hashes]
        assert num_found == [*known, False].index(False) * BLOCK_SIZE
        granted = self.cache.reserve(sequence, min(num_tokens, len(text) - num_found))
        if granted < 1:
            assert sequence.num_blocks == sequence.num_computed == 0
            return
        assert sequence.num_computed <= num_found
        self.live.append(sequence)
        write(self.cache, sequence, min(granted, sequence.num_uncomputed))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), token=st.sampled_from("ab"), num_tokens=st.integers(1, 5))
    def go_on(self, data: st.DataObject, token: str, num_tokens: int) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        if sequence.num_uncomputed == 0:
            sequence.token_ids.append(ord(token))
        granted = self.cache.reserve(sequence, min(num_tokens, sequence.num_uncomputed))
        if granted >= 1:
            write(self.cache, sequence, granted)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.cache.free(self.live.pop(data.draw(st.integers(0, len(self.live) - 1))))

    @rule(copy_s=st.sampled_from((0.001, 0.05, 1.0)))
    def copying_or_computing_becomes_the_cheaper_way(self, copy_s: float) -> None:
        assert self.cache.tier is not None
        self.cache.tier.cost.copy_s = copy_s
        self.cache.tier.observe_step([256], 256 * 0.05 / BLOCK_SIZE)

    @invariant()
    def every_sequence_reads_what_was_computed_for_its_tokens(self) -> None:
        for sequence in self.live:
            check(self.cache, sequence)

    @invariant()
    def every_block_has_its_holders_and_no_other(self) -> None:
        held = [b for s in self.live for b in s.block_table[: s.num_blocks].tolist()]
        for block in range(self.cache.pool.num_blocks):
            assert self.cache.pool.references(block) == held.count(block)

    @invariant()
    def what_was_announced_is_what_can_be_found_in_either_place(self) -> None:
        tier = self.cache.tier
        assert tier is not None and tier.num_kept <= tier.num_blocks
        for content in self.known.contents:
            assert self.cache.pool.find(content) is not None or content in tier
        on_host = set(tier._slot_of)  # pyright: ignore[reportPrivateUsage]
        on_device = set(self.cache.pool._block_of)  # pyright: ignore[reportPrivateUsage]
        assert self.known.contents.keys() == on_host | on_device

    @invariant()
    def a_tail_is_never_kept_without_its_head(self) -> None:
        known = self.known.contents
        assert all(parent in known for parent in known.values() if parent)


TierMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestTier = TierMachine.TestCase


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_a_prefix_that_the_device_has_lost_comes_back(device: str) -> None:
    cache = make_cache(num_blocks=5, num_kept=8, device=device)
    cache.free(compute(cache, "aaaabbb"))
    cache.free(compute(cache, "cccccccc"))  # takes all blocks
    assert cache.tier is not None and cache.tier.num_kept == 3
    again = tokens("aaaabbbb")
    assert cache.prefix.num_found(again) == 6
    assert cache.reserve(again, 2) == 2
    assert (again.num_computed, again.num_cached) == (6, 6)
    assert cache.tier.stats()["kv_offload_restored_blocks_total"] == 3
    check(cache, again)


def test_a_prefix_is_not_brought_back_where_nothing_could_be_computed_behind_it() -> None:
    cache = make_cache(num_blocks=4, num_kept=8)
    cache.free(compute(cache, "aaaa"))
    holder = compute(cache, "bbb")  # leaves one block
    assert cache.tier is not None and cache.tier.num_kept == 1
    again = tokens("aaaab")
    cache.reserve(again, 5)
    assert cache.tier.num_restored_blocks == 0
    check(cache, holder)


def test_what_finds_no_room_on_the_host_is_lost_tail_first() -> None:
    cache = make_cache(num_blocks=5, num_kept=2)
    known = Known(cache)
    cache.free(compute(cache, "aaaaaaaa"))
    cache.free(compute(cache, "bbbbbbbb"))
    head = PrefixSharing(mode="shared", block_size=BLOCK_SIZE).hashes([97] * 8, b"")
    assert [content in known.contents for content in head] == [True, True, False, False]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_answers_are_those_without_a_tier(model_folder: Callable[[str], Path], driver: type[Any], name: str) -> None:
    options = {"kv_cache_bytes": 20_000, "block_size_tokens": 4}
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    prompts = [tuple(range(1 + n, 25 + n)) for n in range(0, 60, 20)] * 3

    def answers(model: Any) -> list[list[str]]:
        found = [driver(model).run([CompletionInput(prompts=(prompt,), params=params)])[0] for prompt in prompts]
        return [driven.texts for driven in found]

    plain, kept = load_folder(model_folder(name), **options), load_folder(model_folder(name), **options)
    tier = kept._cache.keep_on_host(1 << 20)  # pyright: ignore[reportPrivateUsage]
    assert answers(kept) == answers(plain)
    assert tier.num_restored_blocks > 0
    assert kept.stats()["prefix_cache_hits_total"] > plain.stats()["prefix_cache_hits_total"]
    for model in (plain, kept):
        model.close()


def test_blocks_are_dropped_while_computing_them_is_faster_than_copying_them() -> None:
    cache = make_cache(num_blocks=5, num_kept=8)
    tier = cache.tier
    assert tier is not None
    tier.measure()
    assert tier.cost.copy_s is not None
    cache.free(compute(cache, "aaaaaaaa"))
    cache.free(compute(cache, "bbbbbbbb"))
    assert tier.num_kept == 4
    known = Known(cache)
    known.contents = dict.fromkeys([*tier._slot_of, *cache.pool._block_of], b"")  # pyright: ignore[reportPrivateUsage]
    tier.observe_step([256], 256 * tier.cost.copy_s / BLOCK_SIZE / 10)
    assert "dropped, to be computed again" in str(tier.cost)
    assert tier.num_kept == 0 and len(known.contents) == 4
    cache.free(compute(cache, "cccccccc"))
    assert tier.num_kept == 0
    assert tier.stats()["kv_offload_dropped_blocks_total"] == 4
    for _ in range(30):
        tier.observe_step([256], 256 * tier.cost.copy_s / BLOCK_SIZE * 10)
    cache.free(compute(cache, "dddddddd"))
    assert tier.num_kept == 4


def test_the_decision_stays_while_both_ways_cost_about_the_same() -> None:
    cost = SwapCost(block_tokens=16, copy_s=1.0)
    assert not cost.observe_step([255], 1e-6)  # too few tokens to tell
    for compute_s in (1.0, 0.9, 1.0, 1.2, 0.9):
        assert not cost.observe_step([320], 20 * compute_s)
    while cost.pays:
        cost.observe_step([320], 10.0)
    for compute_s in (0.8, 1.0, 1.2):
        assert not cost.observe_step([320], 20 * compute_s)
    assert not cost.pays


def test_steps_that_decode_say_nothing_of_what_a_prompt_costs() -> None:
    cost = SwapCost(block_tokens=16, copy_s=1.0)
    cost.observe_step([256], 256.0)  # a block takes 16 s
    before = str(cost)
    for units in ([1] * 512, [5] * 200, [64, 64, 64, 64] + [1] * 257):
        assert not cost.observe_step(units, 1e-6)
    assert str(cost) == before
    mixed = SwapCost(block_tokens=16, copy_s=1.0)
    mixed.observe_step([128, 64, 64] + [1] * 200, 256.0)  # the tokens of the others ride along
    assert str(mixed) == before


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 1000),
    num_blocks=st.integers(8, 20),
    num_kept=st.integers(1, 12),
    costs=st.lists(st.sampled_from((1e-9, 1e9)), min_size=1, max_size=4),
)
def test_tight_memory_changes_no_token_and_blocks_nobody(
    tight_model: TransformersModel,
    plain_answers: list[str],
    seed: int,
    num_blocks: int,
    num_kept: int,
    costs: list[float],
) -> None:
    """Preemptions at random, with a cost that flips between the two ways: everyone ends, nothing is held afterwards."""
    cache = tight_model._cache  # pyright: ignore[reportPrivateUsage]
    fresh = KvCache(
        (LayerShape(num_kv_heads=cache.tensors[0].shape[2], head_dim=cache.tensors[0].shape[4]),) * len(cache.tensors),
        num_blocks=num_blocks,
        block_size=cache.block_size,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    tier = fresh.keep_on_host(num_kept * fresh.num_bytes // num_blocks)
    flips = itertools.cycle(costs)
    observe = tier.observe_step

    def flip(units: Sequence[int], seconds: float) -> None:
        del units  # too few to be measured
        tier.cost.copy_s = next(flips)
        observe([256], seconds)

    tier.observe_step = flip  # type: ignore[method-assign]
    settler = tight_model._settler  # pyright: ignore[reportPrivateUsage]
    for holder in (tight_model, tight_model._launcher, settler, settler.intake):  # pyright: ignore[reportPrivateUsage]
        holder._cache = fresh  # pyright: ignore[reportPrivateUsage]
    tight_model._decoder.cache = fresh  # pyright: ignore[reportPrivateUsage]
    driven = Driver(tight_model, seed).run(inputs())
    assert [text for one in driven for text in one.texts] == plain_answers
    assert fresh.pool.num_used == 0
    assert len(tier._free) + tier.num_kept == tier.num_blocks  # pyright: ignore[reportPrivateUsage]


def inputs() -> list[CompletionInput]:
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    return [CompletionInput(prompts=(tuple(range(1 + n % 40, 22 + n % 40)),), params=params) for n in range(0, 60, 10)]


@pytest.fixture(scope="module")
def tight_model(model_folder: Callable[[str], Path]) -> TransformersModel:
    return load_folder(model_folder("llama"), block_size_tokens=4)


@pytest.fixture(scope="module")
def plain_answers(tight_model: TransformersModel) -> list[str]:
    return [text for one in Driver(tight_model).run(inputs()) for text in one.texts]


def test_a_cache_that_is_in_host_memory_needs_no_tier(model_folder: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="in host memory already"):
        load_folder(model_folder("llama"), kv_offload_bytes=1 << 20)
