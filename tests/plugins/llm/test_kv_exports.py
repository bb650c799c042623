"""Blocks are kept for other processes as long as was promised, and not a moment longer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sixfold.plugins.llm.kv_exports import KvExports, Lease
from sixfold.plugins.llm.kv_handle import LeaseExpired
from tests.fakes import FakeClock
from tests.plugins.llm.kv_fakes import BLOCK_SIZE, PROMPT, compute, make_cache

LEASE_S = 10.0


class ExportsMachine(RuleBasedStateMachine):
    """Prompts are computed, offered, read, taken, abandoned and forgotten in any order, while time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.cache = make_cache(num_blocks=25)
        self.exports = KvExports(self.cache, clock=self.clock, lease_s=LEASE_S)
        self.offered: list[Lease] = []
        self.read: list[Lease] = []

    @rule(first=st.integers(0, 3), num_blocks=st.integers(0, 6))
    def prefill(self, first: int, num_blocks: int) -> None:
        sequence = compute(self.cache, tuple(range(first, first + num_blocks * BLOCK_SIZE + 1)))
        lease = self.exports.hold(sequence, len(sequence.token_ids))
        if lease is not None:
            self.offered.append(lease)
        self.cache.free(sequence)

    @precondition(lambda self: self.offered)
    @rule(data=st.data())
    def begin_transfer(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.offered))
        try:
            self.read.append(self.exports.open(lease.lease_id, lease.secret))
        except LeaseExpired:
            assert not self.exports.is_kept(lease)

    @precondition(lambda self: self.read)
    @rule(data=st.data())
    def read_blocks(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.read))
        if self.exports.is_kept(lease):
            assert len(self.exports.read(lease, 0, 2)) == min(2, len(lease.block_ids))
        else:
            with pytest.raises(LeaseExpired):
                self.exports.read(lease, 0, 2)

    @precondition(lambda self: self.read)
    @rule(data=st.data(), is_taken=st.booleans())
    def end_transfer(self, data: st.DataObject, is_taken: bool) -> None:
        lease = self.read.pop(data.draw(st.integers(0, len(self.read) - 1)))
        self.exports.close(lease, is_taken=is_taken)

    @rule(seconds=st.sampled_from([0.1, 5.0, LEASE_S]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.exports.expire()

    @rule(num_free=st.integers(0, 24))
    def others_need_room(self, num_free: int) -> None:
        self.exports.give_up(num_free)
        assert self.cache.pool.num_free >= num_free or not self.exports.num_held_blocks

    def kept(self) -> list[Lease]:
        return [lease for lease in self.offered if self.exports.is_kept(lease)]

    @invariant()
    def what_is_held_is_what_the_leases_say(self) -> None:
        held = {block for lease in self.kept() for block in lease.block_ids}
        assert self.cache.pool.num_used == len(held)
        assert self.exports.num_held_blocks == sum(len(lease.block_ids) for lease in self.kept()) <= 12

    def teardown(self) -> None:
        for lease in self.read:
            self.exports.close(lease, is_taken=False)
        self.clock.advance(LEASE_S)
        self.exports.expire()
        assert self.cache.pool.num_used == self.exports.num_held_blocks == 0


ExportsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_no_block_is_leaked_whatever_happens_to_its_handle = ExportsMachine.TestCase


def held(clock: FakeClock, num_blocks: int = 41) -> tuple[KvExports, Lease]:
    cache = make_cache(num_blocks)
    exports = KvExports(cache, clock=clock, lease_s=LEASE_S)
    sequence = compute(cache)
    lease = exports.hold(sequence, len(PROMPT))
    assert lease is not None
    cache.free(sequence)
    return exports, lease


def test_a_lease_ends_at_its_time_but_not_under_a_reader() -> None:
    clock = FakeClock()
    exports, lease = held(clock)
    exports.open(lease.lease_id, lease.secret)
    clock.advance(LEASE_S)
    exports.expire()
    assert exports.num_held_blocks == 10
    exports.close(lease, is_taken=False)
    assert exports.num_held_blocks == 0


def test_a_failed_transfer_may_be_tried_again_and_a_complete_one_ends_the_lease() -> None:
    exports, lease = held(FakeClock())
    exports.close(exports.open(lease.lease_id, lease.secret), is_taken=False)
    exports.close(exports.open(lease.lease_id, lease.secret), is_taken=True)
    with pytest.raises(LeaseExpired):
        exports.open(lease.lease_id, lease.secret)


def test_a_wrong_secret_reads_nothing() -> None:
    exports, lease = held(FakeClock())
    with pytest.raises(LeaseExpired):
        exports.open(lease.lease_id, "0" * 32)


def test_leases_never_hold_more_than_half_of_the_cache() -> None:
    cache = make_cache(num_blocks=20)
    exports = KvExports(cache, clock=FakeClock(), lease_s=LEASE_S)
    sequence = compute(cache)
    assert exports.hold(sequence, 9 * BLOCK_SIZE) is not None
    assert exports.hold(sequence, BLOCK_SIZE) is None


def test_a_prompt_without_a_full_block_is_not_offered() -> None:
    cache = make_cache()
    exports = KvExports(cache, clock=FakeClock(), lease_s=LEASE_S)
    assert exports.hold(compute(cache, (1, 2, 3)), 3) is None


def test_blocks_of_layers_of_any_shape_survive_as_bytes() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        cache = make_cache(dtype=dtype)
        exports = KvExports(cache, clock=FakeClock(), lease_s=LEASE_S)
        sequence = compute(cache)
        lease = exports.hold(sequence, len(PROMPT))
        assert lease is not None
        data = exports.read(lease, 3, 2)
        blocks = list(lease.block_ids[3:5])
        expected = [b"".join(t[block].view(torch.uint8).numpy().tobytes() for t in cache.tensors) for block in blocks]
        assert [bytes(row.numpy()) for row in data] == expected
