"""Lays the granted sequences of a step out as one flat row of tokens, and says where each finds its cache.

Rows that compute one token (decodes) come first, longest context first; chunks of several tokens (prefills) follow.
Decodes of similar context length form a group that attends as one batch; a group's shorter members are padded to its
longest, so a group ends where padding would cost more than another call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.layout_rows import Span, flat_rows, image_rows_of, sampled_rows, scored_rows
from sixfold.plugins.llm.lora_adapter import Adapter
from sixfold.plugins.llm.rope_positions import positions_of_step
from sixfold.plugins.llm.rows import AttentionRows, ScoredSpan
from sixfold.plugins.llm.sampling import IntArray
from sixfold.plugins.llm.tensors import index_tensor, to_tensor

if TYPE_CHECKING:  # its kernels need Triton, which is there on GPUs only
    from sixfold.plugins.llm.tiled_rows import RowTiles

# One more attention call costs about as much as reading this many padding tokens (60 us a layer, measured).
_CALL_COST_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeGroup:
    """Rows ``start`` to ``end`` of the flat batch, one token each.

    Attributes:
        block_ids: [rows * blocks], each row's blocks, padded to the longest with the padding block.
        num_context: Tokens of the padded context, a multiple of the block size.
        lengths: [rows] real context length including the row's own token.
    """

    start: int
    end: int
    block_ids: Tensor
    num_context: int
    lengths: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillChunk:
    """Rows ``start`` to ``end`` of the flat batch: consecutive tokens of one sequence.

    Attributes:
        num_context: Tokens of the sequence up to the end of the chunk, the chunk included.
        block_ids: Blocks that hold them; None when the chunk is the whole context.
    """

    start: int
    end: int
    num_context: int
    block_ids: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredChunk:
    """Tokens of one sequence that the ranks of a replica compute together; see `divided_chunks`.

    Attributes:
        token_ids: Of the chunk.
        layout: Of the chunk by itself; its blocks and offsets in the order in which the ranks' tokens lie end to end.
        past: What the sequence has before it; None if nothing.
    """

    token_ids: Sequence[int]
    layout: BatchLayout
    past: PrefillChunk | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLayout:
    """One step's input.

    Attributes:
        token_ids: [1, tokens].
        position_ids: [1, tokens], or [directions, 1, tokens].
        blocks: [tokens] the cache block that each token's keys and values go to.
        offsets: [tokens] the place in that block.
        decodes: Groups of single-token rows.
        prefills: Chunks of several tokens.
        contexts: All rows.
        sampled: Indices into the granted sequences, in the order of `logit_rows`; one for the last known token of each
            that is computed to its end, followed by one for each of its drafts.
        logit_rows: [sampled + scored places] rows of the flat batch whose logits are needed.
        scored: Places of prompts whose next tokens are to be judged.
        image_rows: [features] rows of the flat batch that take an image's features instead of their token's embedding.
        image_features: [features, hidden size], where the model is; both None if there are none.
        adapters: Of each of the granted sequences; empty where none has one.
        masks: Attention masks made so far, by group and sliding window; filled by the attention function.
        rows: Row numbers made so far; the same for all layers of one shape.
        tiles: The rows for kernels on GPUs, instead of ``decodes`` and ``prefills``.
        carried: [tokens] on the host: where the token of a row is among those that the step before chose, -1 if it is in
            ``token_ids``; None if all are.
        divided: Chunks that are computed by several ranks, in the same forward; none of their tokens is among the rows.
    """

    token_ids: Tensor
    position_ids: Tensor
    blocks: Tensor
    offsets: Tensor
    decodes: tuple[DecodeGroup, ...]
    prefills: tuple[PrefillChunk, ...]
    contexts: AttentionRows
    sampled: tuple[int, ...]
    logit_rows: Tensor
    scored: tuple[ScoredSpan, ...] = ()
    image_rows: Tensor | None = None
    image_features: Tensor | None = None
    adapters: tuple[Adapter | None, ...] = ()
    masks: dict[tuple[int, int | None], Tensor] = field(default_factory=lambda: {})
    rows: dict[tuple[int, int, int], Tensor] = field(default_factory=lambda: {})
    short: dict[int, AttentionRows] = field(default_factory=lambda: {})
    tiles: RowTiles | None = None
    carried: IntArray | None = None
    divided: tuple[StoredChunk, ...] = ()

    def to(self, device: torch.device, tiles: RowTiles) -> BatchLayout:
        """A layout made on the host, for kernels on ``device``."""
        return dataclasses.replace(
            self,
            token_ids=self.token_ids.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            blocks=self.blocks.to(device, non_blocking=True),
            offsets=self.offsets.to(device, non_blocking=True),
            logit_rows=self.logit_rows.to(device, non_blocking=True),
            image_rows=None if self.image_rows is None else self.image_rows.to(device, non_blocking=True),
            tiles=tiles,
        )

    def rows_up_to(self, max_context: int) -> AttentionRows:
        """The decodes, and the chunks whose context is no longer than that; made once a step."""
        found = self.short.get(max_context)
        if found is None:
            every = self.contexts
            chosen = [np.arange(self.prefills[0].start if self.prefills else len(every.rows))]
            chosen += [np.arange(c.start, c.end) for c in self.prefills if c.num_context <= max_context]
            rows = np.concatenate(chosen)
            found = self.short[max_context] = dataclasses.replace(
                every, rows=rows, num_tokens=int(every.lengths[rows].sum())
            )
        return found

    def token_rows(self, *, num_kv_heads: int, block_size: int) -> tuple[Tensor, Tensor]:
        """Where the step's keys and values go, in a layer's cache seen as rows of one token of one head.

        Returns:
            Two of [kv heads * tokens], head by head.
        """
        found = self.rows.get((-1, num_kv_heads, block_size))
        if found is None:
            heads = torch.arange(num_kv_heads, device=self.blocks.device).unsqueeze(1)
            found = ((self.blocks * 2 * num_kv_heads + heads) * block_size + self.offsets).reshape(-1)
            found = torch.stack((found, found + num_kv_heads * block_size))
            self.rows[(-1, num_kv_heads, block_size)] = found
        return found[0], found[1]

    def block_rows(self, part: DecodeGroup | PrefillChunk, block_ids: Tensor, *, num_kv_heads: int) -> Tensor:
        """Where a context is found, in a layer's cache seen as rows of one block of one head.

        Returns:
            [2 (key, value), sequences * kv heads, blocks of a context].
        """
        num_sequences = part.end - part.start if isinstance(part, DecodeGroup) else 1
        found = self.rows.get((part.start, num_kv_heads, 0))
        if found is None:
            table = block_ids.view(num_sequences, 1, -1) * 2 * num_kv_heads
            table = (table + torch.arange(num_kv_heads, device=table.device).view(1, -1, 1)).flatten(0, 1)
            found = self.rows[(part.start, num_kv_heads, 0)] = torch.stack((table, table + num_kv_heads))
        return found


def lay_out(
    sequences: Sequence[CachedTokens],
    units: Sequence[int],
    *,
    block_size: int,
    device: torch.device,
    grouped: bool = True,
    num_skipped: Sequence[int] = (),
) -> BatchLayout:
    """Makes the layout of one step.

    Args:
        sequences: Granted sequences whose blocks are reserved.
        units: Tokens each computes, at least 1; what exceeds the known tokens is taken from its drafts, or is the one that a
            step in flight chooses.
        block_size: Tokens per cache block.
        device: Where the tensors go.
        grouped: False to leave ``decodes`` and ``prefills`` empty, for kernels that need neither.
        num_skipped: Tokens of each before these that are computed elsewhere in the same forward; none by default.
    """
    counts = np.array(units, dtype=np.int64)
    contexts = np.array([s.num_computed + s.num_in_flight for s in sequences], dtype=np.int64) + counts
    if num_skipped:
        contexts += np.array(num_skipped, dtype=np.int64)
    decodes = np.flatnonzero(counts == 1)
    decodes = decodes[np.argsort(-contexts[decodes], kind="stable")]
    chunks = _spans(np.flatnonzero(counts > 1).tolist(), sequences, units, contexts, start=len(decodes))
    rows = flat_rows(sequences, contexts, decodes, chunks, block_size)
    positions = rows.contexts.lengths - 1
    sampled, logit_rows = sampled_rows(sequences, contexts, decodes, chunks)
    scored: Sequence[ScoredSpan] = ()
    score_rows: list[int] = []
    rotated = image_rows = image_features = None
    if any(s.num_scored or s.images or s.rope for s in sequences):
        spans = [*_spans(decodes.tolist(), sequences, units, contexts, start=0), *chunks]
        rotated = positions_of_step(
            [span.sequence.rope for span in spans], [span.begin for span in spans], [span.context for span in spans]
        )
        scored, score_rows = scored_rows(spans)
        image_rows, image_features = image_rows_of(spans, device)
    order: list[int] = decodes.tolist()
    adapters = tuple([sequence.adapter for sequence in sequences])
    return BatchLayout(
        token_ids=to_tensor(rows.token_ids, device).unsqueeze(0),
        position_ids=to_tensor(positions if rotated is None else rotated, device).unsqueeze(-2),
        blocks=to_tensor(rows.blocks, device),
        offsets=to_tensor(positions % block_size, device),
        decodes=_decode_groups([sequences[i] for i in order], contexts[decodes].tolist(), block_size, device)
        if grouped
        else (),
        prefills=tuple(_prefill_chunk(chunk, block_size, device) for chunk in chunks) if grouped else (),
        contexts=rows.contexts,
        sampled=sampled,
        logit_rows=index_tensor([*logit_rows, *score_rows], device),
        scored=tuple(scored),
        image_rows=image_rows,
        image_features=image_features,
        adapters=adapters if any(adapters) else (),
        carried=rows.carried,
    )


def _spans(
    places: Sequence[int], sequences: Sequence[CachedTokens], units: Sequence[int], contexts: IntArray, *, start: int
) -> list[Span]:
    """The rows of some sequences, one after the other from row ``start`` on."""
    spans: list[Span] = []
    for place in places:
        spans.append(Span(place, sequences[place], start, start + units[place], int(contexts[place])))
        start += units[place]
    return spans


def _prefill_chunk(span: Span, block_size: int, device: torch.device) -> PrefillChunk:
    block_ids: Tensor | None = None
    if span.context > span.end - span.start:
        num_blocks = -(-span.context // block_size)
        block_ids = to_tensor(span.sequence.block_table[:num_blocks].copy(), device)
    return PrefillChunk(start=span.start, end=span.end, num_context=span.context, block_ids=block_ids)


def _decode_groups(
    sequences: Sequence[CachedTokens], contexts: Sequence[int], block_size: int, device: torch.device
) -> tuple[DecodeGroup, ...]:
    groups: list[DecodeGroup] = []
    start = 0
    while start < len(sequences):
        end = _group_end(contexts, start)
        num_blocks = -(-contexts[start] // block_size)
        table: IntArray = np.zeros((end - start, num_blocks), dtype=np.int64)
        for row, sequence in enumerate(sequences[start:end]):
            used = -(-contexts[start + row] // block_size)
            table[row, :used] = sequence.block_table[:used]
        groups.append(
            DecodeGroup(
                start=start,
                end=end,
                block_ids=to_tensor(table.reshape(-1), device),
                num_context=num_blocks * block_size,
                lengths=index_tensor(contexts[start:end], device),
            )
        )
        start = end
    return tuple(groups)


def _group_end(contexts: Sequence[int], start: int) -> int:
    """Where the group that begins at ``start`` ends; contexts fall.

    A cut at a row saves the padding of all later rows as long as they would stay in this group, so it is made at the
    first row from which the padding of the rest exceeds a call's cost.
    """
    longest = contexts[start]
    padding = 0
    for at in range(start, len(contexts)):
        padding += longest - contexts[at]
        if padding > _CALL_COST_TOKENS and contexts[at] < 0.75 * longest:
            return at
    return len(contexts)
