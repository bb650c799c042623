"""What the cache had to give away comes back from the host bit by bit, where that is cheaper than to compute it."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sixfold.core.errors import ConfigError
from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.kv_cache import KvCache, LayerShape
from sixfold.plugins.llm.kv_host_tier import KvHostTier
from tests.plugins.llm.test_lora import asking, tokens_of

BLOCK_SIZE = 2
BLOCK_BYTES = 2 * BLOCK_SIZE * 4


class Clock:
    """Goes on by ``step_s`` whenever it is read."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.step_s = step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def make_cache(*, num_blocks: int, num_host_blocks: int, clock: Clock | None = None) -> tuple[KvCache, KvHostTier]:
    cache = KvCache(
        (LayerShape(num_kv_heads=1, head_dim=1),),
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    host = KvHostTier(
        cache.tensors, block_size=BLOCK_SIZE, num_bytes=num_host_blocks * BLOCK_BYTES, clock=clock or Clock()
    )
    cache.prefix.host = host
    return cache, host


def value_of(token_ids: list[int]) -> float:
    """What a layer would compute for the last of these tokens: something that depends on all."""
    return float(zlib.crc32(bytes(token_ids)) % 100_003)


def compute(cache: KvCache, sequence: CachedTokens, num_tokens: int = 1000) -> int:
    """Stands for a step; returns how many tokens it had to compute."""
    units = min(cache.reserve(sequence, min(num_tokens, sequence.num_uncomputed)), sequence.num_uncomputed)
    for place in range(sequence.num_computed, sequence.num_computed + units):
        block = int(sequence.block_table[place // BLOCK_SIZE])
        cache.tensors[0][block, :, 0, place % BLOCK_SIZE, 0] = value_of(sequence.token_ids[: place + 1])
    sequence.num_computed += units
    cache.publish(sequence)
    return units


def tokens(text: str) -> CachedTokens:
    return CachedTokens([ord(char) for char in text], salt=b"")


class TierMachine(RuleBasedStateMachine):
    """Sequences over two letters start, grow, are preempted and end in a tiny cache with a tiny tier."""

    def __init__(self) -> None:
        super().__init__()
        self.cache, self.host = make_cache(num_blocks=9, num_host_blocks=5)
        self.live: list[CachedTokens] = []

    @rule(text=st.text("ab", min_size=1, max_size=12), num_tokens=st.integers(1, 12))
    def start(self, text: str, num_tokens: int) -> None:
        sequence = tokens(text)
        promised = self.cache.prefix.num_found(sequence)
        if compute(self.cache, sequence, num_tokens):
            assert (sequence.num_cached or 0) <= promised
            self.live.append(sequence)
        else:
            assert sequence.num_blocks == 0

    @precondition(lambda self: self.live)
    @rule(data=st.data(), token=st.sampled_from("ab"), num_tokens=st.integers(1, 5))
    def go_on(self, data: st.DataObject, token: str, num_tokens: int) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        if sequence.num_uncomputed == 0:
            sequence.token_ids.append(ord(token))
        compute(self.cache, sequence, num_tokens)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        self.cache.free(data.draw(st.sampled_from(self.live)))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.cache.free(self.live.pop(data.draw(st.integers(0, len(self.live) - 1))))

    @invariant()
    def every_computed_token_holds_its_own_value(self) -> None:
        for sequence in self.live:
            for place in range(sequence.num_computed):
                block = int(sequence.block_table[place // BLOCK_SIZE])
                held = self.cache.tensors[0][block, 0, 0, place % BLOCK_SIZE, 0]
                assert float(held) == value_of(sequence.token_ids[: place + 1])

    @invariant()
    def every_block_has_its_holders_and_no_other(self) -> None:
        held = [b for s in self.live for b in s.block_table[: s.num_blocks].tolist()]
        for block in range(self.cache.pool.num_blocks):
            assert self.cache.pool.references(block) == held.count(block)

    @invariant()
    def the_tier_keeps_to_its_room(self) -> None:
        assert self.host.num_blocks <= 5


TierMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestTier = TierMachine.TestCase


def test_a_preempted_sequence_finds_what_others_have_overwritten() -> None:
    cache, host = make_cache(num_blocks=6, num_host_blocks=8)
    first, second = tokens("abcdefgh"), tokens("ABCDEFGHI")
    assert compute(cache, first) == 8
    cache.free(first)
    assert compute(cache, second) == 9
    assert host.num_saved == 4
    cache.free(second)
    first.token_ids.append(ord("i"))
    assert cache.prefix.num_found(first) == 8
    assert compute(cache, first) == 1
    assert first.num_computed == 9
    assert host.num_restored == 4


def test_what_is_longest_unused_leaves_the_tier_first() -> None:
    cache, host = make_cache(num_blocks=4, num_host_blocks=3)
    for text in ("abcdef", "ABCDEF", "123456"):
        sequence = tokens(text)
        compute(cache, sequence)
        cache.free(sequence)
    assert host.num_blocks == 3
    assert cache.prefix.num_found(tokens("abcdefg")) == 0
    assert cache.prefix.num_found(tokens("ABCDEFG")) == 6


def test_a_copy_that_takes_longer_than_computing_is_not_made() -> None:
    clock = Clock(step_s=1.0)  # a copy seems to take a second
    cache, host = make_cache(num_blocks=4, num_host_blocks=8, clock=clock)
    first, second = tokens("abcdef"), tokens("ABCDEF")
    compute(cache, first)
    cache.free(first)
    compute(cache, second)
    cache.free(second)
    assert host.num_saved == 3
    host.observe_compute(64, 64 * 1.0)  # a token takes a second: a block of two tokens more than its copy
    assert host.pays
    assert cache.prefix.num_found(tokens("abcdefg")) == 6
    host.observe_compute(8, 0.0)  # too small a step to tell
    assert host.pays
    for _ in range(40):
        host.observe_compute(64, 64 * 0.01)
    assert not host.pays
    assert cache.prefix.num_found(tokens("abcdefg")) == 0
    assert compute(cache, tokens("abcdef")) == 6
    assert (host.num_saved, host.num_restored) == (3, 0)


def ignore(num_tokens: int, seconds: float) -> None:
    """Learns nothing."""


@pytest.mark.parametrize("seed", [1, 2])
def test_answers_are_the_same_with_swapping_and_prompts_are_computed_less(
    seed: int, model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], driver: type[Any]
) -> None:
    base = model_folder("llama")
    asked = [asking(tuple(range(start, start + 40)), None) for start in range(0, 120, 12)]
    plain = driver(load_tiny(base)).run(asked)
    small: dict[str, Any] = {"kv_cache_bytes": 60_000, "speculation": {"method": "off"}}
    swapping, recomputing = load_tiny(base, host_cache_bytes=1 << 20, **small), load_tiny(base, **small)
    # What computing takes is made up: a machine that is busy elsewhere must not decide.
    swapping._cache.prefix.host._compute_s = 1e9
    swapping._cache.prefix.host.observe_compute = ignore
    for model in (swapping, recomputing):
        run = driver(model, seed)
        assert [tokens_of(driven) for driven in run.run(asked)] == [tokens_of(driven) for driven in plain]
        assert run.num_preemptions > 0
    assert swapping.stats()["kv_swapped_in_blocks_total"] > 0
    assert swapping.stats()["prompt_tokens_total"] < recomputing.stats()["prompt_tokens_total"]


def test_options_that_could_not_work_are_refused(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any]
) -> None:
    base = model_folder("llama")
    with pytest.raises(ConfigError, match="found by the prefix cache"):
        load_tiny(base, host_cache_bytes=1 << 20, prefix_cache="off")
    with pytest.raises(ConfigError, match=r"one block takes \d+ bytes"):
        load_tiny(base, host_cache_bytes=1)
