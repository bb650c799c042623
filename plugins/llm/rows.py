"""The rows of a step: what kernels that read cache blocks where they lie see of them, and which judge a prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sixfold.plugins.llm.sampling import IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRows:
    """Rows of the flat batch that each attend to their own context, for kernels that read cache blocks where they lie.

    Attributes:
        rows: [n] rows of the batch.
        sequences: [tokens] the sequence of each row of the whole batch.
        lengths: [tokens] real context length of each row, its own token included.
        tables: [sequences, blocks] the cache blocks of each, padded with the padding block.
        num_tokens: Sum of the lengths of ``rows``.
    """

    rows: IntArray
    sequences: IntArray
    lengths: IntArray
    tables: IntArray
    num_tokens: int


@dataclass(frozen=True, slots=True)
class ScoredSpan:
    """Places of a sequence whose logits tell of the tokens behind them.

    Attributes:
        index: Of the sequence in the step.
        begin: First place.
        end: Behind the last.
    """

    index: int
    begin: int
    end: int


def runs_of(sequences: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Start, length and sequence of each run of rows of one sequence.

    Args:
        sequences: [tokens] the sequence of each row; a sequence's rows lie together.
    """
    starts = np.flatnonzero(np.diff(sequences, prepend=-1))
    counts = np.diff(starts, append=len(sequences))
    return starts, counts, sequences[starts]
