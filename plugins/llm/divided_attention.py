"""Attention of chunks whose tokens several ranks have: their keys and values come to rank 0's blocks, what was there before goes
to the ranks, and each rank attends for its own tokens.

A layer's exchange, in order: rank 0 takes the chunk's keys and values of all ranks into its blocks; it hands each rank a part of
the keys before the chunk, which that rank forgets after the layer; then heads are traded or blocks travel, as in
`sixfold.core.parallel.attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sixfold.core.parallel.attention import Lengths, Past, UnsupportedAttention, parallel_attention, past_shares
from sixfold.core.parallel.exchange import collect, hand_out
from sixfold.core.parallel.mesh import Mesh
from sixfold.core.parallel.tokens import even_lengths
from sixfold.plugins.llm.batch_layout import StoredChunk
from sixfold.plugins.llm.cache_policy import CacheScheme
from sixfold.plugins.llm.divided_chunks import DividedChunk
from sixfold.plugins.llm.kv_layer import KvLayer, as_read

DIVIDED_ATTENTION = "sixfold_divided"
"""Name in transformers' table of attention functions, for ranks that have nothing but their rows of such chunks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DividedRows:
    """This rank's rows of all divided chunks of a step, end to end.

    Attributes:
        mesh: Of this rank.
        chunks: Of the step.
        stored: Where rank 0 keeps them; () in the others.
        scheme: How the cache keeps numbers.
    """

    mesh: Mesh
    chunks: tuple[DividedChunk, ...]
    stored: tuple[StoredChunk, ...] = ()
    scheme: CacheScheme | None = None

    @property
    def lengths(self) -> list[int]:
        """This rank's rows of each chunk."""
        return [chunk.order.lengths[self.mesh.context.index] for chunk in self.chunks]


def divided_attention(
    _module: object,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    paged_step: DividedRows,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_others: object,
) -> tuple[Tensor, None]:
    """As `sixfold.plugins.llm.attention.paged_attention`, where there are no other rows and no cache."""
    attended = attend_divided(
        paged_step, query, key, value, scaling=scaling, sliding_window=sliding_window, softcap=softcap
    )
    return attended.transpose(1, 2), None


def attend_divided(
    rows: DividedRows,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float | None,
    sliding_window: int | None,
    softcap: float | None,
    cache: KvLayer | None = None,
) -> Tensor:
    """What this rank's rows make of all that comes before them. All ranks call it, layer by layer.

    Args:
        rows: Of this rank.
        query: [1, heads, its rows, head dim], rotated.
        key: [1, kv heads, its rows, head dim], rotated.
        value: As ``key``.
        scaling: Of the scores; 1/sqrt(head dim) if None.
        sliding_window: Must be None.
        softcap: Must be None.
        cache: Rank 0's layer.

    Returns:
        As ``query``.

    Raises:
        UnsupportedAttention: The layer wants what can't be divided.
    """
    if sliding_window is not None or softcap is not None:
        what = "look back through a window only" if sliding_window is not None else "cap their scores"
        raise UnsupportedAttention(f"its layers {what}, which can't be divided among ranks yet")
    lengths = rows.lengths
    kv = torch.split(torch.stack((key[0], value[0])), lengths, dim=2)
    # All chunks before any attends: one may begin with blocks that another one fills.
    for index, chunk in enumerate(rows.chunks):
        _keep(rows, index, chunk, kv[index], cache)
    attended: list[Tensor] = []
    for index, (chunk, own) in enumerate(zip(rows.chunks, torch.split(query, lengths, dim=2), strict=True)):
        past = _past(rows, index, chunk, own, kv[index], cache)
        read = kv[index] if rows.scheme is None else as_read(kv[index], rows.scheme)
        found = parallel_attention(
            own,
            read[0][None],
            read[1][None],
            rows.mesh,
            Lengths(query=chunk.order.lengths, key=chunk.order.lengths),
            order=chunk.order,
            past=past,
            scale=scaling,
        )
        attended.append(found)
    return torch.cat(attended, dim=2)


def _keep(rows: DividedRows, index: int, chunk: DividedChunk, kv: Tensor, cache: KvLayer | None) -> None:
    """Brings the keys and values of all ranks, [2, kv heads, tokens, head dim], into rank 0's blocks."""
    shapes = [(*kv.shape[:2], length, kv.shape[3]) for length in chunk.order.lengths]
    parts = collect(kv, shapes, rows.mesh.context)
    if cache is not None:
        whole = torch.cat(parts, dim=2)
        cache.store(rows.stored[index].layout, whole[0], whole[1])


def _past(
    rows: DividedRows, index: int, chunk: DividedChunk, query: Tensor, kv: Tensor, cache: KvLayer | None
) -> Past | None:
    """This rank's part of the keys and values before the chunk."""
    if not chunk.num_past:
        return None
    degrees = rows.mesh.degrees
    shares = past_shares(query.shape[1], kv.shape[1], chunk.num_past, degrees)
    parts: Sequence[Tensor] = ()
    if cache is not None:
        stored = rows.stored[index]
        assert stored.past is not None and stored.past.block_ids is not None
        whole = cache.gather(stored.layout, stored.past, stored.past.block_ids, kv.dtype)
        parts = [whole[:, heads.start : heads.stop, tokens.start : tokens.stop] for heads, tokens in shares]
    heads, tokens = shares[rows.mesh.context.index]
    mine = hand_out(parts, (2, len(heads), len(tokens), kv.shape[3]), kv, rows.mesh.context)
    return Past(key=mine[0][None], value=mine[1][None], lengths=even_lengths(chunk.num_past, degrees.ring))
