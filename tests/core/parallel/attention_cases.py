"""Attention over ranks beside the attention of one process, for `test_attention`; runs in every rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sixfold.core.parallel.attention import Lengths, Past, parallel_attention, past_shares
from sixfold.core.parallel.mesh import Mesh
from sixfold.core.parallel.tokens import TokenOrder, divide, even_lengths


@dataclass(frozen=True, kw_only=True)
class Case:
    """An attention; what is not said is self-attention of equal heads without a mask."""

    tokens: int = 24
    heads: int = 4
    kv_heads: int = 4
    keys: int | None = None  # of a cross-attention
    masked: bool = False
    masked_per_head: bool = False
    whole_part_masked: bool = False
    causal: bool = False
    zigzag: bool = False
    past: int = 0  # keys before all of these
    rows: int = 2
    dtype: torch.dtype = torch.float32


CASES = {
    "self": Case(),
    "odd length": Case(tokens=23),
    "shorter than the ranks": Case(tokens=3, rows=1),
    "float64": Case(tokens=21, dtype=torch.float64),
    "grouped heads": Case(heads=8, kv_heads=4),
    "fewer kv heads than ranks": Case(heads=8, kv_heads=1, tokens=25),
    "heads that do not divide": Case(heads=6, kv_heads=3, tokens=25),
    "heads that do not fall evenly on kv heads": Case(heads=10, kv_heads=5, tokens=25),
    "padding": Case(masked=True, tokens=25),
    "padding per head": Case(masked_per_head=True, tokens=25),
    "a part that is all padding": Case(whole_part_masked=True, tokens=26),
    "cross attention": Case(keys=13),
    "cross attention with padding": Case(keys=13, masked=True, heads=8, kv_heads=2),
    "causal": Case(causal=True, tokens=32),
    "causal, odd length, grouped heads": Case(causal=True, tokens=37, heads=8, kv_heads=2),
    "causal, mirrored": Case(causal=True, zigzag=True, tokens=32),
    "causal, mirrored, odd length, one kv head": Case(causal=True, zigzag=True, tokens=45, heads=4, kv_heads=1),
    "causal, with a past": Case(causal=True, tokens=29, past=21, heads=8, kv_heads=2),
    "causal, mirrored, with a past": Case(causal=True, zigzag=True, tokens=29, past=21, heads=6, kv_heads=3),
    "causal, mirrored, with a past shorter than the ranks": Case(causal=True, zigzag=True, tokens=29, past=3),
    "causal, mirrored, with padding": Case(causal=True, zigzag=True, tokens=41, masked=True),
}


def all_differences(mesh: Mesh) -> dict[str, float]:
    """The largest difference of each case in this rank."""
    return {name: difference(case, mesh) for name, case in CASES.items() if _possible(case, mesh)}


def _possible(case: Case, mesh: Mesh) -> bool:
    # One kernel takes a causal mask or another one; decoders with both pad on the right and need none.
    return not (case.causal and case.masked and mesh.ring.size == 1)


def difference(case: Case, mesh: Mesh) -> float:
    """Between this rank's part of the whole attention and what it computes with the others."""
    generator = torch.Generator().manual_seed(7)

    def draw(heads: int, tokens: int) -> Tensor:
        return torch.randn(case.rows, heads, tokens, 8, generator=generator, dtype=case.dtype)

    num_keys = case.keys or case.tokens
    query, key, value = draw(case.heads, case.tokens), draw(case.kv_heads, num_keys), draw(case.kv_heads, num_keys)
    queries = divide(case.tokens, mesh.degrees, zigzag=case.zigzag)
    keys = queries if case.keys is None else divide(num_keys, mesh.degrees)
    mask = _mask(case, num_keys, keys, generator)
    earlier = draw(case.kv_heads, case.past), draw(case.kv_heads, case.past)
    expected = _expected(case, query, torch.cat((earlier[0], key), 2), torch.cat((earlier[1], value), 2), mask)
    own, own_keys = queries.positions(mesh.context.index), keys.positions(mesh.context.index)
    actual = parallel_attention(
        query[:, :, own],
        key[:, :, own_keys],
        value[:, :, own_keys],
        mesh,
        Lengths(query=queries.lengths, key=keys.lengths),
        mask=None if mask is None else mask[..., own_keys],
        order=queries if case.causal else None,
        past=_past(case, *earlier, mesh) if case.past else None,
    )
    assert actual.dtype == query.dtype
    return float((actual - expected[:, :, own]).abs().max()) if own else 0.0


def _past(case: Case, key: Tensor, value: Tensor, mesh: Mesh) -> Past:
    heads, tokens = past_shares(case.heads, case.kv_heads, case.past, mesh.degrees)[mesh.context.index]
    key, value = (each[:, heads.start : heads.stop, tokens.start : tokens.stop] for each in (key, value))
    return Past(key=key, value=value, lengths=even_lengths(case.past, mesh.degrees.ring))


def _mask(case: Case, num_keys: int, keys: TokenOrder, generator: torch.Generator) -> Tensor | None:
    if case.whole_part_masked:
        mask = torch.ones(case.rows, 1, 1, num_keys, dtype=torch.bool)
        mask[1, :, :, keys.positions(len(keys.ranks) - 1)] = False
        return mask
    if not case.masked and not case.masked_per_head:
        return None
    mask = torch.rand(case.rows, case.heads if case.masked_per_head else 1, 1, num_keys, generator=generator) > 0.4
    mask[..., 0] = True
    return mask


def _expected(case: Case, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    if case.causal:
        causal = torch.ones(case.tokens, case.past + case.tokens, dtype=torch.bool).tril(case.past)
        mask = causal if mask is None else mask & causal
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
