"""A packed batch loses nothing, mixes nothing and pads little; attention over it equals attention over each alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sixfold.plugins.embedding.attention import PackedAttention
from sixfold.plugins.embedding.packing import Bounds, PackedBatch, cheapest_groups, near_equal_groups, pack

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)
CPU = torch.device("cpu")


def pack_lengths(
    lengths: list[int], offset: int = 0, group: Callable[[NDArray[np.int64]], Bounds] = cheapest_groups
) -> PackedBatch:
    sequences = [np.arange(1000 * index, 1000 * index + length) + 1000 for index, length in enumerate(lengths)]
    return pack(sequences, position_offset=offset, device=CPU, group=group)


def ints(row: Tensor) -> list[int]:
    return [int(value) for value in row]


@given(LENGTHS)
def test_every_token_is_there_once_with_its_position(lengths: list[int]) -> None:
    batch = pack_lengths(lengths, offset=2)
    assert batch.lengths.tolist() == sorted(lengths)
    flat = [(int(i), p) for i, n in zip(batch.order, batch.lengths, strict=True) for p in range(n)]
    assert ints(batch.token_ids[0]) == [1000 * i + 1000 + p for i, p in flat]
    assert ints(batch.position_ids[0]) == [p + 2 for _, p in flat]


@given(LENGTHS, st.sampled_from([cheapest_groups, near_equal_groups]))
def test_groups_cover_the_batch_and_count_their_padding(
    lengths: list[int], group: Callable[[NDArray[np.int64]], Bounds]
) -> None:
    batch = pack_lengths(lengths, group=group)
    assert [g.start for g in batch.groups] == [0, *(g.stop for g in batch.groups[:-1])]
    assert batch.groups[-1].stop == sum(lengths)
    first = 0
    for part in batch.groups:
        mine = batch.lengths[first : first + part.num_sequences]
        first += part.num_sequences
        assert mine[-1] == part.max_tokens
        assert part.num_padding == int((part.max_tokens - mine).sum())
        if group is near_equal_groups:
            assert mine[-1] <= max(mine[0] * 1.125, mine[0] + 2)
    assert batch.num_padding == sum(g.num_padding for g in batch.groups)


def attention_us(lengths: NDArray[np.int64], bounds: Bounds) -> float:
    total = 0.0
    for first, behind in bounds:
        longest = int(lengths[behind - 1])
        places = (behind - first) * longest
        total += 100 + 0.95 * places + 0.0079 * places * longest + 94 * (lengths[first] != longest)
    return total


@given(st.lists(st.integers(1, 300), min_size=1, max_size=9))
def test_no_other_grouping_is_cheaper(lengths: list[int]) -> None:
    ascending = np.sort(np.array(lengths))
    inner = range(1, len(lengths))
    every = [[0, *cuts, len(lengths)] for count in range(len(lengths)) for cuts in itertools.combinations(inner, count)]
    least = min(attention_us(ascending, list(itertools.pairwise(ends))) for ends in every)
    assert attention_us(ascending, cheapest_groups(ascending)) == pytest.approx(least)


@given(LENGTHS)
def test_what_is_gathered_into_a_block_scatters_back_to_itself(lengths: list[int]) -> None:
    batch = pack_lengths(lengths)
    for group in batch.groups:
        mine = batch.token_ids[0, group.start : group.stop]
        if group.gather is None or group.scatter is None or group.is_real is None:
            assert group.num_padding == 0
            continue
        block = mine[group.gather]
        assert torch.equal(block[group.scatter], mine)
        rows = block.view(group.num_sequences, group.max_tokens) // 1000
        assert (rows == rows[:, :1]).all()  # padding repeats a token of its own sequence
        assert int(group.is_real.sum()) == len(mine)


class Layer(nn.Module):
    def __init__(self, is_causal: bool) -> None:
        super().__init__()
        self.is_causal = is_causal


def alone(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None) -> Tensor:
    """Plain attention of one sequence; all [heads, tokens, dim]."""
    k, v = (x.repeat_interleave(q.shape[0] // x.shape[0], dim=0) for x in (k, v))
    distance = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
    allowed = (distance >= 0) if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        allowed &= distance.abs() < window
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


@settings(deadline=None)
@given(LENGTHS, st.booleans(), st.sampled_from([None, 3, 17]), st.sampled_from([1, 2, 4]))
def test_packed_attention_equals_attention_over_each_sequence_alone(
    lengths: list[int], causal: bool, window: int | None, key_heads: int
) -> None:
    batch = pack_lengths(lengths)
    total = sum(lengths)
    q, k, v = torch.randn(1, 4, total, 8), torch.randn(1, key_heads, total, 8), torch.randn(1, key_heads, total, 8)
    attention = PackedAttention()
    with attention.running(batch):
        result, weights = attention(Layer(causal), q, k, v, None, sliding_window=window)
    attention.close()
    assert weights is None
    start = 0
    for length in batch.lengths.tolist():
        one = slice(start, start + length)
        expected = alone(q[0, :, one], k[0, :, one], v[0, :, one], causal, window)
        torch.testing.assert_close(result[0, one].transpose(0, 1), expected, atol=1e-5, rtol=1e-5)
        start += length


def test_attention_refuses_what_would_change_its_result() -> None:
    attention = PackedAttention()
    x = torch.zeros(1, 2, 3, 4)
    with attention.running(pack_lengths([3])):
        with pytest.raises(NotImplementedError, match="softcap"):
            attention(Layer(False), x, x, x, None, softcap=30.0)
        with pytest.raises(NotImplementedError, match="mask"):
            attention(Layer(False), x, x, x, torch.zeros(1, 1, 3, 3))
    with pytest.raises(NotImplementedError):
        attention(Layer(False), x, x, x, None)
    attention.close()
