"""Presence, frequency and repetition penalties over the tokens each row has seen, for a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sixfold.plugins.llm.sampling import IntArray
from sixfold.plugins.llm.tensors import to_tensor


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
    """The penalties of one row of logits."""

    row: int
    counts: TokenCounts
    presence: float
    frequency: float
    repetition: float


def apply_penalties(logits: Tensor, penalties: Sequence[RowPenalties]) -> None:
    """Changes the logits of seen tokens in place.

    Repetition touches prompt and answer; presence and frequency only the answer, after it.

    Args:
        logits: [rows, vocabulary] float32.
        penalties: At most one per row.

    Source: Keskar et al. 2019, section 4.1 (repetition); OpenAI API reference (presence, frequency).
    """
    if not penalties:
        return
    sizes = [len(p.counts.ids) for p in penalties]

    def spread(values: Sequence[float]) -> Tensor:
        return to_tensor(np.repeat(np.array(values, dtype=np.float32), sizes), logits.device)

    rows = to_tensor(np.repeat(np.array([p.row for p in penalties]), sizes), logits.device)
    tokens = to_tensor(np.concatenate([p.counts.ids for p in penalties]), logits.device)
    counts = to_tensor(np.concatenate([p.counts.counts for p in penalties]), logits.device).float()
    values = logits[rows, tokens]
    repetition = spread([p.repetition for p in penalties])
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= spread([p.frequency for p in penalties]) * counts
    values -= spread([p.presence for p in penalties]) * (counts > 0)
    logits[rows, tokens] = values
