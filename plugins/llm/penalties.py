"""Presence, frequency and repetition penalties over the tokens each row has seen, for a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sixfold.plugins.llm.sampling import IntArray
from sixfold.plugins.llm.tensors import index_tensor, to_tensor


class TokenCounts:
    """How often each token of one sequence was generated; tokens of the prompt count as seen, with a count of 0.

    Kept as two growing arrays, so that a step reads them without a loop.

    Args:
        prompt_ids: The prompt's tokens.
    """

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        seen = dict.fromkeys(prompt_ids)
        self._place = {token: place for place, token in enumerate(seen)}
        self._size = len(seen)
        self._ids: IntArray = np.zeros(max(64, 2 * self._size), dtype=np.int64)
        self._counts: IntArray = np.zeros_like(self._ids)
        self._ids[: self._size] = list(seen)

    def add(self, token_id: int) -> None:
        """Counts a generated token."""
        place = self._place.get(token_id)
        if place is None:
            place = self._place[token_id] = self._size
            if self._size == len(self._ids):
                self._ids = np.resize(self._ids, 2 * self._size)
                self._counts = np.resize(self._counts, 2 * self._size)
                self._counts[self._size :] = 0
            self._ids[place] = token_id
            self._size += 1
        self._counts[place] += 1

    def followed_by(self, token_ids: Sequence[int]) -> TokenCounts:
        """A copy that has counted these, too."""
        other = TokenCounts(())
        other._place = dict(self._place)
        other._size, other._ids, other._counts = self._size, self._ids.copy(), self._counts.copy()
        for token_id in token_ids:
            other.add(token_id)
        return other

    @property
    def ids(self) -> IntArray:
        """Every token seen, each once."""
        return self._ids[: self._size]

    @property
    def counts(self) -> IntArray:
        """How often each of `ids` was generated."""
        return self._counts[: self._size]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPenalties:
    """The penalties of one row of logits.

    Attributes:
        row: Which.
        counts: What it has seen.
        presence: See `SamplingParams`.
        frequency: See `SamplingParams`.
        repetition: See `SamplingParams`.
        has_unknown: Whether one more token was generated, which the host does not know yet.
    """

    row: int
    counts: TokenCounts
    presence: float
    frequency: float
    repetition: float
    has_unknown: bool = False


def apply_penalties(logits: Tensor, penalties: Sequence[RowPenalties], unknown: Tensor | None = None) -> None:
    """Changes the logits of seen tokens in place.

    Repetition touches prompt and answer; presence and frequency only the answer, after it.

    Args:
        logits: [rows, vocabulary] float32.
        penalties: At most one per row.
        unknown: [rows] tokens that the host does not know yet, of the rows that have one.

    Source: Keskar et al. 2019, section 4.1 (repetition); OpenAI API reference (presence, frequency).
    """
    if not penalties:
        return
    device = logits.device
    sizes = [len(p.counts.ids) for p in penalties]
    of_row = np.repeat(np.array([p.row for p in penalties]), sizes)
    owner = np.repeat(np.arange(len(penalties)), sizes)
    rows = to_tensor(of_row, device)
    tokens = to_tensor(np.concatenate([p.counts.ids for p in penalties]), device)
    counts = to_tensor(np.concatenate([p.counts.counts for p in penalties]), device).float()
    late = [place for place, p in enumerate(penalties) if p.has_unknown]
    if late and unknown is not None:
        rows, tokens, counts = _with_unknown(rows, tokens, counts, [penalties[place].row for place in late], unknown)
        owner = np.concatenate([owner, np.array(late)])

    def spread(values: Sequence[float]) -> Tensor:
        return to_tensor(np.array(values, dtype=np.float32)[owner], device)

    values = logits[rows, tokens]
    repetition = spread([p.repetition for p in penalties])
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= spread([p.frequency for p in penalties]) * counts
    values -= spread([p.presence for p in penalties]) * (counts > 0)
    logits[rows, tokens] = values


def _with_unknown(
    rows: Tensor, tokens: Tensor, counts: Tensor, late: Sequence[int], unknown: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Adds the unknown tokens of some rows, each counted once more than it is known to have been seen.

    A token that the row had seen before stands there twice then, both times with the same count: whichever is written
    last, the logit is the same.
    """
    late_rows = index_tensor(late, rows.device)
    # Of rows without an unknown token, one that no token equals.
    of_row = torch.full_like(unknown, -1)
    of_row[late_rows] = unknown[late_rows]
    counts = counts + (tokens == of_row[rows])
    # What was seen of it before, by row; a row has it at most once.
    known = torch.zeros(len(unknown), dtype=counts.dtype, device=rows.device)
    known.index_add_(0, rows, torch.where(tokens == of_row[rows], counts, 0.0))
    own = known[late_rows].clamp(min=1.0)
    return torch.cat([rows, late_rows]), torch.cat([tokens, unknown[late_rows]]), torch.cat([counts, own])
