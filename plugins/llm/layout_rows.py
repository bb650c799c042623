"""The rows that the granted sequences of a step have in its flat batch, and what each is for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.prompt_images import feature_rows
from sixfold.plugins.llm.rows import AttentionRows, ScoredSpan
from sixfold.plugins.llm.sampling import IntArray
from sixfold.plugins.llm.tensors import to_tensor


class Span(NamedTuple):
    """The rows of one sequence: ``start`` to ``end`` of the batch, up to the token ``context`` of the sequence."""

    place: int
    sequence: CachedTokens
    start: int
    end: int
    context: int

    @property
    def begin(self) -> int:
        """The sequence's token that the first row computes."""
        return self.context - (self.end - self.start)


class FlatRows(NamedTuple):
    """Of all rows: their tokens, the cache blocks that these go to, and their contexts.

    A token that a step in flight chooses is 0 in ``token_ids``; ``carried`` has its place among those chosen, else -1.
    ``carried`` is None if all are known.
    """

    token_ids: IntArray
    carried: IntArray | None
    blocks: IntArray
    contexts: AttentionRows


def flat_rows(
    sequences: Sequence[CachedTokens], contexts: IntArray, decodes: IntArray, chunks: Sequence[Span], block_size: int
) -> FlatRows:
    """Tokens and places of all rows; decodes, of which there may be hundreds, at once.

    Args:
        sequences: Of the step.
        contexts: Tokens of each up to its last row.
        decodes: Those of one row, in the order of their rows, which come first.
        chunks: The others.
        block_size: Tokens per cache block.
    """
    num_decodes = len(decodes)
    num_tokens = chunks[-1].end if chunks else num_decodes
    token_ids, positions, sequence_of = (np.empty(num_tokens, dtype=np.int64) for _ in range(3))
    tables = np.zeros((len(sequences), -(-int(contexts.max()) // block_size)), dtype=np.int64)
    for table, sequence, num_blocks in zip(tables, sequences, (-(-contexts // block_size)).tolist(), strict=True):
        table[:num_blocks] = sequence.block_table[:num_blocks]
    carried: IntArray | None = None
    if num_decodes:
        positions[:num_decodes] = contexts[decodes] - 1
        sequence_of[:num_decodes] = decodes
        order: list[int] = decodes.tolist()
        known: list[int] = [
            s.token_ids[at] if at < len(s.token_ids) else -1 - s.carried
            for s, at in zip([sequences[i] for i in order], positions[:num_decodes].tolist(), strict=True)
        ]
        token_ids[:num_decodes] = known
        is_carried = token_ids[:num_decodes] < 0
        if is_carried.any():
            carried = np.full(num_tokens, -1)
            carried[:num_decodes][is_carried] = -1 - token_ids[:num_decodes][is_carried]
            token_ids[:num_decodes][is_carried] = 0
    for place, sequence, start, end, context in chunks:
        begin, num_known = context - (end - start), len(sequence.token_ids)
        token_ids[start:end] = [*sequence.token_ids[begin:context], *sequence.drafts[: max(0, context - num_known)]]
        positions[start:end] = np.arange(begin, context)
        sequence_of[start:end] = place
    rows = AttentionRows(
        rows=np.arange(num_tokens),
        sequences=sequence_of,
        lengths=positions + 1,
        tables=tables,
        num_tokens=int(positions.sum()) + num_tokens,
    )
    return FlatRows(token_ids, carried, tables[sequence_of, positions // block_size], rows)


def sampled_rows(
    sequences: Sequence[CachedTokens], contexts: IntArray, decodes: IntArray, chunks: Sequence[Span]
) -> tuple[tuple[int, ...], list[int]]:
    """Which sequence each logit belongs to, and the rows of these; the arguments are those of `flat_rows`."""
    places: list[int] = decodes.tolist()
    ends = np.array([len(sequences[i].token_ids) + sequences[i].num_expected for i in places], dtype=np.int64)
    is_wanted = contexts[decodes] >= ends
    sampled: list[int] = decodes[is_wanted].tolist()
    rows: list[int] = np.flatnonzero(is_wanted).tolist()
    for place, sequence, _start, end, context in chunks:
        num_known = len(sequence.token_ids) + sequence.num_expected
        if context >= num_known:
            wanted = range(end - (context - num_known) - 1, end)
            sampled.extend([place] * len(wanted))
            rows.extend(wanted)
    return tuple(sampled), rows


def scored_rows(spans: Sequence[Span]) -> tuple[list[ScoredSpan], list[int]]:
    """Places of prompts that are judged, and the rows that judge them."""
    scored: list[ScoredSpan] = []
    rows: list[int] = []
    for place, sequence, start, end, context in spans:
        begin = context - (end - start)
        judged = min(context, sequence.num_scored - 1)
        if judged > begin or (sequence.num_scored == 1 and begin == 0):
            scored.append(ScoredSpan(place, begin, max(judged, begin)))
            rows.extend(range(start, start + max(judged, begin) - begin))
    return scored, rows


def image_rows_of(spans: Sequence[Span], device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Rows that take an image's features, and these."""
    rows: list[IntArray] = []
    features: list[Tensor] = []
    for span in spans:
        for of_image, found in feature_rows(span.sequence.images, span.begin, span.context):
            rows.append(of_image + span.start)
            features.append(found)
    return (to_tensor(np.concatenate(rows), device), torch.cat(features)) if rows else (None, None)
