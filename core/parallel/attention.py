"""Attention of tokens that lie in several ranks: heads are exchanged (Ulysses), key/value blocks travel (ring), or both.

Each rank has all heads of its tokens. The Ulysses ranks trade: each then has some heads of all their tokens. Round the ring
the queries stay and key/value blocks pass by, so a rank never holds more than two blocks of them.

Source: Jacobs et al. 2023, DeepSpeed Ulysses; Liu et al. 2023, Ring Attention; Fang and Zhao 2024, USP.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sixfold.core.parallel.blockwise import Merged, additive, attend
from sixfold.core.parallel.degrees import Degrees
from sixfold.core.parallel.exchange import all_gather, all_to_all, pass_on
from sixfold.core.parallel.mesh import Group, Mesh
from sixfold.core.parallel.tokens import TokenOrder, even_lengths


class UnsupportedAttention(Exception):
    """This attention can't be computed over several ranks; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Which heads a Ulysses rank computes.

    Attributes:
        query: Of the queries.
        kv: Of keys and values: those that its queries need. Ranks beyond the number of kv heads share them.
    """

    query: range
    kv: range

    def kv_of_queries(self, group_size: int) -> list[int]:
        """For each query head its kv head, counted within ``kv``."""
        return [head // group_size - self.kv.start for head in self.query]


def divide_heads(num_heads: int, num_kv_heads: int, num_ranks: int) -> tuple[Heads, ...]:
    """Divides heads among ranks.

    Raises:
        UnsupportedAttention: A rank would have none.
    """
    if num_ranks > num_heads:
        raise UnsupportedAttention(f"{num_heads} heads can't be divided among {num_ranks} ranks")
    size = num_heads // num_kv_heads
    starts = [sum(even_lengths(num_heads, num_ranks)[:rank]) for rank in range(num_ranks + 1)]
    return tuple(
        Heads(query=range(start, stop), kv=range(start // size, (stop - 1) // size + 1))
        for start, stop in itertools.pairwise(starts)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of each context rank."""

    query: tuple[int, ...]
    key: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """Earlier keys, which every query sees, as they lie once heads are exchanged.

    Attributes:
        key: [rows, kv heads of this Ulysses rank, keys of this place on the ring, dim].
        value: As the key.
        lengths: Keys of each place on the ring.
    """

    key: Tensor
    value: Tensor
    lengths: tuple[int, ...]


def past_shares(num_heads: int, num_kv_heads: int, num_tokens: int, degrees: Degrees) -> list[tuple[range, range]]:
    """Which kv heads and which tokens of the earlier ones each context rank holds in its `Past`."""
    heads = divide_heads(num_heads, num_kv_heads, degrees.ulysses)
    lengths = even_lengths(num_tokens, degrees.ring)
    ends = list(itertools.accumulate(lengths))
    tokens = [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    return [(share.kv, place) for place in tokens for share in heads]


def parallel_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mesh: Mesh,
    lengths: Lengths,
    *,
    mask: Tensor | None = None,
    order: TokenOrder | None = None,
    past: Past | None = None,
    scale: float | None = None,
) -> Tensor:
    """What this rank's queries make of all ranks' keys. All context ranks call it.

    Args:
        query: [rows, heads, this rank's queries, dim].
        key: [rows, kv heads, this rank's keys, dim]; heads are a multiple of kv heads.
        value: As the key.
        mesh: Of this rank.
        lengths: Of all ranks.
        mask: For this rank's keys, [rows or 1, heads or 1, 1, keys]: bool, True to attend, or added to the scores.
        order: Makes it causal: a query sees what is at its position or before. Queries and keys lie in this order.
        past: This rank's part of keys before all of these; not together with a mask.
        scale: Of the scores; 1 / sqrt(dim) if None.

    Returns:
        As the query.

    Raises:
        UnsupportedAttention: Fewer heads than Ulysses ranks, or a mask that differs from query to query.
    """
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    mask = _key_mask(mask, key.shape[2])
    shares = divide_heads(query.shape[1], key.shape[1], mesh.ulysses.size)
    first = mesh.ring.index * mesh.ulysses.size
    mine = slice(first, first + mesh.ulysses.size)
    inner = Lengths(query=lengths.query[mine], key=lengths.key[mine])
    own = shares[mesh.ulysses.index]
    gathered_mask = _gather_mask(mask, inner.key, own, mesh.ulysses)
    every_query, every_kv = [share.query for share in shares], [share.kv for share in shares]
    local_query = _to_heads(query, every_query, inner.query, mesh.ulysses)
    local_key = _to_heads(key, every_kv, inner.key, mesh.ulysses)
    local_value = _to_heads(value, every_kv, inner.key, mesh.ulysses)
    if past is not None:
        assert mask is None, "a mask says nothing of the past"
        local_key, local_value = torch.cat((past.key, local_key), 2), torch.cat((past.value, local_value), 2)
    local_key, local_value = _matched(local_key, local_value, own, query.shape[1] // key.shape[1])
    if mesh.ring.size == 1 and past is None:
        out = torch.nn.functional.scaled_dot_product_attention(
            local_query,
            local_key,
            local_value,
            attn_mask=gathered_mask,
            is_causal=order is not None,
            scale=scale,
            enable_gqa=local_query.shape[1] != local_key.shape[1],
        )
    else:
        num_past = (0,) * mesh.ring.size if past is None else past.lengths
        out = _ring(local_query, local_key, local_value, mesh, lengths, gathered_mask, order, num_past, scale)
    return _to_tokens(out, every_query, inner.query, mesh.ulysses)


def _key_mask(mask: Tensor | None, num_keys: int) -> Tensor | None:
    """[rows or 1, heads or 1, 1, keys] of any mask that says the same for every query."""
    if mask is None:
        return None
    while mask.ndim < 4:
        mask = mask.unsqueeze(-3 if mask.ndim >= 2 else 0)
    if mask.shape[2] != 1 and mask.stride(2) != 0:
        raise UnsupportedAttention("its mask differs from query to query")
    mask = mask[:, :, :1]
    if mask.shape[3] != num_keys:
        raise UnsupportedAttention(f"its mask is for {mask.shape[3]} keys, and this rank has {num_keys}")
    return mask


def _gather_mask(mask: Tensor | None, key_lengths: Sequence[int], own: Heads, group: Group) -> Tensor | None:
    if mask is None:
        return None
    gathered = all_gather(mask, key_lengths, 3, group)
    return gathered if gathered.shape[1] == 1 else gathered[:, own.query.start : own.query.stop]


def _to_heads(tensor: Tensor, heads: Sequence[range], lengths: Sequence[int], group: Group) -> Tensor:
    """[rows, all heads, own tokens, dim] to [rows, own heads, all tokens, dim]."""
    if group.size == 1:
        return tensor
    rows, _, _, dim = tensor.shape
    by_token = tensor.permute(2, 0, 1, 3)
    own = len(heads[group.index])
    # Tokens come first on the way, so that what all ranks sent is one tensor as it arrives.
    parts = [by_token[:, :, each.start : each.stop] for each in heads]
    received = all_to_all(parts, [length * rows * own * dim for length in lengths], group)
    return received.view(sum(lengths), rows, own, dim).permute(1, 2, 0, 3)


def _to_tokens(tensor: Tensor, heads: Sequence[range], lengths: Sequence[int], group: Group) -> Tensor:
    """The way back."""
    if group.size == 1:
        return tensor
    rows, _, _, dim = tensor.shape
    own = lengths[group.index]
    sizes = [own * rows * len(each) * dim for each in heads]
    received = all_to_all(torch.split(tensor.permute(2, 0, 1, 3), list(lengths)), sizes, group)
    parts = [
        part.view(own, rows, len(each), dim) for part, each in zip(torch.split(received, sizes), heads, strict=True)
    ]
    return torch.cat(parts, dim=2).permute(1, 2, 0, 3)


def _matched(key: Tensor, value: Tensor, own: Heads, group_size: int) -> tuple[Tensor, Tensor]:
    """Repeats kv heads where a rank's query heads do not fall evenly on them."""
    wanted = own.kv_of_queries(group_size)
    each, rest = divmod(len(own.query), len(own.kv))
    if not rest and wanted == [head for head in range(len(own.kv)) for _ in range(each)]:
        return key, value
    index = torch.tensor(wanted, device=key.device)
    return key.index_select(1, index), value.index_select(1, index)


def _ring(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mesh: Mesh,
    lengths: Lengths,
    mask: Tensor | None,
    order: TokenOrder | None,
    num_past: Sequence[int],
    scale: float,
) -> Tensor:
    """Invariant: before round i this rank has the block of the rank i places before it, and the next is on its way."""
    group, width = mesh.ring, mesh.ulysses.size
    block_lengths = [
        num_past[place] + sum(lengths.key[place * width : (place + 1) * width]) for place in range(group.size)
    ]
    block = [key.contiguous(), value.contiguous()]
    if mask is not None:
        block.append(additive(mask, query.dtype).contiguous())
    merged = Merged(query)
    for turn in range(group.size):
        source = (group.index - turn) % group.size
        coming = None
        if turn + 1 < group.size:
            length = block_lengths[(source - 1) % group.size]
            shapes = [(*part.shape[:2], length, part.shape[3]) for part in block[:2]]
            shapes += [(*part.shape[:3], length) for part in block[2:]]
            coming = pass_on(block, shapes, group)
        pairs = _pairs(order, group.index, source, query.shape[2], block_lengths[source], num_past[source])
        for queries, keys, causal in pairs:
            bias = block[2][..., keys] if len(block) > 2 else None
            out, lse = attend(
                query[:, :, queries], block[0][:, :, keys], block[1][:, :, keys], mask=bias, causal=causal, scale=scale
            )
            merged.add(out, lse, queries)
        if coming is not None:
            block = coming()
    return merged.result


def _pairs(
    order: TokenOrder | None, own: int, source: int, num_queries: int, num_keys: int, num_past: int
) -> list[tuple[slice, slice, bool]]:
    """(queries, keys, whether causal within) of a round; blocks that no query may see are left out.

    The first ``num_past`` keys of a block are before all of the order, and every query sees them.
    """
    if not num_queries or not num_keys:
        return []
    if order is None:
        return [(slice(0, num_queries), slice(0, num_keys), False)]
    pairs = [(slice(0, num_queries), slice(0, num_past), False)] if num_past else list[tuple[slice, slice, bool]]()
    for positions, queries in _slices(order.ring[own]):
        parts = _slices(order.ring[source], num_past)
        visible = [(begin, keys) for begin, keys in parts if begin.start <= positions.start]
        # Parts of an order are equal or apart, so what begins earlier ends before this part begins.
        pairs += [(queries, keys, begin.start == positions.start) for begin, keys in visible]
    return pairs


def _slices(ranges: Sequence[range], start: int = 0) -> list[tuple[range, slice]]:
    found: list[tuple[range, slice]] = []
    for each in ranges:
        if len(each):
            found.append((each, slice(start, start + len(each))))
        start += len(each)
    return found
