"""The block pool loses nothing and shares nothing by mistake, whatever is asked of it in whatever order."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sixfold.plugins.llm.block_pool import PADDING_BLOCK, BlockPool, block_hash

NUM_BLOCKS = 9


class PoolMachine(RuleBasedStateMachine):
    """Holders take, share, publish and release blocks; a plain model keeps the books."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.holders: list[list[int]] = []
        self.content: dict[int, bytes] = {}  # what was last written into a block since it was handed out

    def held(self) -> list[int]:
        return [block for blocks in self.holders for block in blocks]

    @rule(count=st.integers(0, 12))
    def allocate(self, count: int) -> None:
        free, held = self.pool.num_free, set(self.held())
        blocks = self.pool.allocate(count)
        assert len(blocks) == min(count, free)
        assert not held & set(blocks), "a held block was handed out"
        for block in blocks:
            self.content.pop(block, None)
        self.holders.append(blocks)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1))))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        blocks = list(data.draw(st.sampled_from(self.holders)))
        self.pool.share(blocks)
        self.holders.append(blocks)

    @precondition(lambda self: self.held())
    @rule(data=st.data(), content=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def publish(self, data: st.DataObject, content: bytes) -> None:
        block = data.draw(st.sampled_from(self.held()))
        if block not in self.content:  # a block is written once
            self.content[block] = content
            assert self.content[self.pool.publish(block, content)] == content

    @rule(content=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def reuse(self, content: bytes) -> None:
        block = self.pool.find(content)
        if block is not None:
            assert self.content[block] == content, "a block was found by content that it does not have"
            self.pool.share([block])
            self.holders.append([block])

    @invariant()
    def every_reference_is_someones(self) -> None:
        held = self.held()
        for block in range(NUM_BLOCKS):
            assert self.pool.references(block) == held.count(block)

    @invariant()
    def free_and_used_make_all(self) -> None:
        assert self.pool.num_used == len(set(self.held()))
        assert self.pool.num_free + self.pool.num_used == self.pool.num_usable == NUM_BLOCKS - 1

    @invariant()
    def padding_is_never_handed_out(self) -> None:
        assert PADDING_BLOCK not in self.held()


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase


def test_the_longest_unused_block_is_handed_out_first_and_a_tail_before_its_head() -> None:
    pool = BlockPool(7)
    first, second = pool.allocate(3), pool.allocate(3)
    for block in first + second:
        pool.publish(block, bytes([block]))
    pool.release(second)
    pool.release(first)
    assert pool.allocate(6) == second[::-1] + first[::-1]


def test_blocks_that_nobody_can_find_are_handed_out_before_all_others() -> None:
    pool = BlockPool(5)
    found, lost = pool.allocate(2), pool.allocate(2)
    for block in found:
        pool.publish(block, bytes([block]))
    pool.release(found)
    pool.release(lost)
    assert pool.allocate(2) == lost


def test_a_freed_block_is_found_by_its_content_until_it_is_handed_out_again() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.publish(block, b"x")
    pool.release([block])
    assert pool.find(b"x") == block
    pool.allocate(1)
    assert pool.find(b"x") is None


def test_releasing_twice_is_an_error() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(ValueError, match="more often"):
        pool.release(blocks)


def test_the_hash_of_a_block_names_all_that_came_before() -> None:
    first = block_hash(b"", [1, 2])
    assert block_hash(b"", [1, 2]) == first
    others = [block_hash(first, [1, 2]), block_hash(b"", [2, 1]), block_hash(b"", [1, 2], salt=b"t")]
    assert len({first, *others}) == 4
