"""Sequences that begin alike share blocks, find exactly what was computed before, and lose it longest unused and tail first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.kv_cache import KvCache, LayerShape
from sixfold.plugins.llm.prefix_sharing import PrefixSharing
from sixfold.plugins.llm.step_sharing import share_in_step

BLOCK_SIZE = 2
Prefix = tuple[int, ...]


def make_cache(num_blocks: int = 10) -> KvCache:
    shapes = (LayerShape(num_kv_heads=1, head_dim=1),)
    return KvCache(
        shapes, num_blocks=num_blocks, block_size=BLOCK_SIZE, dtype=torch.float32, device=torch.device("cpu")
    )


def tokens(text: str, salt: bytes | None = b"") -> CachedTokens:
    return CachedTokens([ord(char) for char in text], salt=salt)


def hash_of(prefix: Prefix) -> bytes:
    return PrefixSharing(mode="shared", block_size=BLOCK_SIZE).hashes(prefix, b"")[-1]


def full_prefixes(sequence: CachedTokens, num_tokens: int) -> list[Prefix]:
    return [tuple(sequence.token_ids[:end]) for end in range(BLOCK_SIZE, num_tokens + 1, BLOCK_SIZE)]


def compute(cache: KvCache, sequence: CachedTokens, num_tokens: int = 1000) -> int:
    """Stands for a step; returns how many tokens it had to compute."""
    units = min(cache.reserve(sequence, min(num_tokens, sequence.num_uncomputed)), sequence.num_uncomputed)
    sequence.num_computed += units
    cache.publish(sequence)
    return units


class PrefixMachine(RuleBasedStateMachine):
    """Sequences over two letters start, grow and end in a small cache; a plain model keeps the books.

    It knows what was written into each block, and the prefixes that nobody holds in the order of their release.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cache = make_cache()
        self.cache.prefix.listener = self
        self.live: list[CachedTokens] = []
        self.written: dict[int, Prefix] = {}
        self.unheld: OrderedDict[Prefix, None] = OrderedDict()  # findable; longest unused first
        self.announced: dict[bytes, Prefix] = {}  # what a listener believes to be findable

    def stored(
        self, hashes: Sequence[bytes], parent: bytes, token_ids: Sequence[int], adapter: str | None = None
    ) -> None:
        prefix = self.announced[parent] if parent else ()
        assert len(token_ids) == len(hashes) * BLOCK_SIZE
        for place, content in enumerate(hashes):
            prefix += tuple(token_ids[place * BLOCK_SIZE : (place + 1) * BLOCK_SIZE])
            assert content not in self.announced
            self.announced[content] = prefix

    def removed(self, content: bytes) -> None:
        prefix = self.announced.pop(content)
        assert prefix == next(iter(self.unheld)), "another content was unused for longer"
        del self.unheld[prefix]

    @rule(text=st.text("ab", min_size=1, max_size=13), num_tokens=st.integers(1, 13))
    def start(self, text: str, num_tokens: int) -> None:
        sequence = tokens(text)
        num_found = len([p for p in full_prefixes(sequence, len(text) - 1) if hash_of(p) in self.announced])
        assert self.cache.prefix.num_found(sequence) == num_found * BLOCK_SIZE
        found = full_prefixes(sequence, num_found * BLOCK_SIZE)
        before = OrderedDict(self.unheld)
        for prefix in found:
            self.unheld.pop(prefix, None)
        units = self.cache.reserve(sequence, min(num_tokens, len(text) - num_found * BLOCK_SIZE))
        if units < 1:
            assert sequence.num_blocks == sequence.num_computed == 0
            for prefix in reversed(found):  # held for a moment: they count as used
                if prefix in before:
                    self.unheld[prefix] = None
            return
        assert sequence.num_computed == num_found * BLOCK_SIZE < len(text)
        for block, prefix in zip(sequence.block_table.tolist(), found, strict=False):
            assert self.written[block] == prefix, "a block was found by content that it does not have"
        self.live.append(sequence)
        self.finish_step(sequence, units)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), token=st.sampled_from("ab"), num_tokens=st.integers(1, 5))
    def go_on(self, data: st.DataObject, token: str, num_tokens: int) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        if sequence.num_uncomputed == 0:
            sequence.token_ids.append(ord(token))
        units = self.cache.reserve(sequence, min(num_tokens, sequence.num_uncomputed))
        if units >= 1:
            self.finish_step(sequence, units)

    def finish_step(self, sequence: CachedTokens, units: int) -> None:
        begin, sequence.num_computed = sequence.num_computed, sequence.num_computed + units
        for index in range(begin // BLOCK_SIZE, -(-sequence.num_computed // BLOCK_SIZE)):
            end = min((index + 1) * BLOCK_SIZE, sequence.num_computed)
            self.written[int(sequence.block_table[index])] = tuple(sequence.token_ids[:end])
        newly_held = [p for p in full_prefixes(sequence, sequence.num_computed) if p in self.unheld]
        self.cache.publish(sequence)
        for prefix in newly_held:  # computed again beside a free copy, which is held from now on
            del self.unheld[prefix]

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        sequence = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        held = {p for other in self.live for p in full_prefixes(other, other.num_computed)}
        prefixes = full_prefixes(sequence, sequence.num_computed)
        self.cache.free(sequence)
        self.unheld.update((prefix, None) for prefix in reversed(prefixes) if prefix not in held)

    @invariant()
    def every_block_has_its_holders_and_no_other(self) -> None:
        held = [b for s in self.live for b in s.block_table[: s.num_blocks].tolist()]
        for block in range(self.cache.pool.num_blocks):
            assert self.cache.pool.references(block) == held.count(block)

    @invariant()
    def every_computed_block_of_a_sequence_holds_its_tokens(self) -> None:
        for sequence in self.live:
            for prefix, block in zip(
                full_prefixes(sequence, sequence.num_computed), sequence.block_table.tolist(), strict=False
            ):
                assert self.written[block] == prefix

    @invariant()
    def what_was_announced_is_what_can_be_found(self) -> None:
        held = {p for s in self.live for p in full_prefixes(s, s.num_computed)}
        assert set(self.announced.values()) == held | set(self.unheld)
        assert all(self.cache.pool.find(content) is not None for content in self.announced)

    @invariant()
    def a_tail_is_never_kept_without_its_head(self) -> None:
        prefixes = set(self.announced.values())
        assert all(len(p) == BLOCK_SIZE or p[:-BLOCK_SIZE] in prefixes for p in prefixes)


PrefixMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestPrefix = PrefixMachine.TestCase


def test_the_last_token_is_computed_even_if_all_are_in_the_cache() -> None:
    cache = make_cache()
    first, again = tokens("abcd"), tokens("abcd")
    assert compute(cache, first) == 4
    assert compute(cache, again) == 2
    assert again.num_cached == 2


def test_generated_tokens_are_found_by_the_next_turn() -> None:
    cache = make_cache()
    turn = tokens("abc")
    compute(cache, turn)
    for char in "def":
        turn.token_ids.append(ord(char))
        compute(cache, turn)
    cache.free(turn)
    assert compute(cache, tokens("abcdefgh")) == 2


def test_a_preempted_sequence_finds_its_own_blocks_and_counts_what_it_first_found() -> None:
    cache = make_cache()
    sequence = tokens("abcdef")
    compute(cache, sequence)
    cache.free(sequence)
    sequence.token_ids.append(ord("g"))
    assert compute(cache, sequence) == 1
    assert sequence.num_cached == 0


def test_other_salts_share_nothing_and_none_shares_with_nobody() -> None:
    cache = make_cache(30)
    for salt in (b"", b"x", None, None):
        assert compute(cache, tokens("abcde", salt)) == 5
    assert compute(cache, tokens("abcde", b"x")) == 1
    assert cache.prefix.num_queried_tokens == 15
    assert cache.prefix.num_hit_tokens == 4


@pytest.mark.parametrize(
    ("mode", "same", "other"), [("shared", True, True), ("per_key", True, False), ("off", False, False)]
)
def test_the_mode_says_which_keys_share(mode: str, same: bool, other: bool) -> None:
    sharing = PrefixSharing(mode=mode, block_size=BLOCK_SIZE)  # type: ignore[arg-type]
    cache = make_cache(30)
    compute(cache, tokens("abcde", sharing.salt("ann", None)))
    assert (cache.prefix.num_found(tokens("abcde", sharing.salt("ann", None))) > 0) is same
    assert (cache.prefix.num_found(tokens("abcde", sharing.salt("bob", None))) > 0) is other
    assert cache.prefix.num_found(tokens("abcde", sharing.salt("ann", "salt"))) == 0


def test_a_suspect_sequence_clears_no_block_that_others_hold_or_can_find() -> None:
    cache = make_cache()
    good = tokens("abcd")
    compute(cache, good)
    follower = tokens("abcdxy")
    cache.reserve(follower, 2)
    shared, own = follower.block_table[0], follower.block_table[2]
    cache.tensors[0][:] = 1
    follower.suspect = True
    cache.free(good)
    cache.free(follower)
    cache.pool.allocate(1)  # whoever gets a block next finds it clean
    assert cache.tensors[0][shared].eq(1).all()
    assert cache.tensors[0][own].eq(0).all()


def test_blocks_are_published_up_to_the_first_that_is_not_finite() -> None:
    cache = make_cache()
    sequence = tokens("abcdefgh")
    cache.reserve(sequence, 8)
    cache.tensors[-1][int(sequence.block_table[2]), 1, 0, 1] = torch.nan
    sequence.num_computed = 8
    cache.publish(sequence)
    assert cache.prefix.num_found(tokens("abcdefghi")) == 4


def test_sequences_of_one_step_compute_a_common_head_once() -> None:
    cache = make_cache(30)
    sequences = [tokens("abcdef"), tokens("abcdef"), tokens("abcdxyz"), tokens("bbcdef")]
    units = [cache.reserve(s, s.num_uncomputed) for s in sequences]
    spans = share_in_step(sequences, units, cache)
    assert units == [6, 2, 3, 6]
    assert [s.num_computed for s in sequences] == [0, 4, 4, 0]
    for span in spans:
        span.keep(cache)
    assert sequences[1].block_table[:2].tolist() == sequences[0].block_table[:2].tolist()
    assert sequences[1].block_table[2] != sequences[0].block_table[2]
    assert [s.num_cached for s in sequences] == [0, 4, 4, 0]
    for sequence in sequences:
        cache.free(sequence)
    assert cache.pool.num_used == 0


def test_a_step_that_failed_shared_nothing() -> None:
    cache = make_cache(30)
    sequences = [tokens("abcdef"), tokens("abcdef")]
    units = [cache.reserve(s, 6) for s in sequences]
    before = [s.block_table.tolist() for s in sequences]
    for span in share_in_step(sequences, units, cache):
        span.undo(cache)
    assert [s.block_table.tolist() for s in sequences] == before
    assert [s.num_computed for s in sequences] == [0, 0]
