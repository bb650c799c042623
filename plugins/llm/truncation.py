"""Draws tokens from temperature-scaled logits under top-k, top-p and min-p, without sorting the vocabulary.

Only the likeliest tokens matter to a truncated distribution. A row takes its candidates from the top ``_SMALL`` or
``_LARGE`` logits; the rare row whose kept set is larger is sorted in full. Which of the three a row gets depends on that
row alone, so no other member of the batch can change its result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SMALL = 64
_LARGE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What the rows of a batch ask for; all tensors [rows].

    Attributes:
        uniform: Float64 in [0, 1); picks the token along the cumulated probabilities.
        top_k: Int64; 0 keeps all.
        top_p: Float64; 1 keeps all.
        min_p: Float64; 0 keeps all.
    """

    uniform: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor

    def select(self, rows: Tensor) -> Draw:
        """The same for some of the rows."""
        return Draw(uniform=self.uniform[rows], top_k=self.top_k[rows], top_p=self.top_p[rows], min_p=self.min_p[rows])


def draw_tokens(logits: Tensor, draw: Draw) -> Tensor:
    """One token per row.

    Args:
        logits: [rows, vocabulary] float32, already divided by the temperature.
        draw: The rows' parameters.

    Returns:
        [rows] int64.

    Source: Fan et al. 2018 (top-k), Holtzman et al. 2020 (top-p), Nguyen et al. 2024 (min-p).
    """
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    free = (draw.top_k == 0) & (draw.top_p >= 1) & (draw.min_p <= 0)
    small = ~free & (draw.top_k > 0) & (draw.top_k <= _SMALL)
    large = ~free & ~small
    free_rows, small_rows, large_rows = (mask.nonzero().squeeze(1) for mask in (free, small, large))
    if len(free_rows):
        tokens[free_rows] = _draw_from_all(logits[free_rows], draw.uniform[free_rows])
    for rows, num_candidates in ((small_rows, _SMALL), (large_rows, _LARGE)):
        if len(rows):
            tokens[rows] = _draw_truncated(logits[rows], draw.select(rows), num_candidates)
    return tokens


def _draw_from_all(logits: Tensor, uniform: Tensor) -> Tensor:
    cumulated = torch.softmax(logits, dim=-1).cumsum(-1, dtype=torch.float64)
    return _invert(cumulated, uniform)


def _invert(cumulated: Tensor, uniform: Tensor) -> Tensor:
    """The first place where the cumulated probability exceeds the number; never a place of probability 0."""
    target = (uniform * cumulated[:, -1]).unsqueeze(1)
    return torch.searchsorted(cumulated, target, right=True).squeeze(1).clamp_(max=cumulated.shape[1] - 1)


def _draw_truncated(logits: Tensor, draw: Draw, num_candidates: int) -> Tensor:
    num_candidates = min(num_candidates, logits.shape[1])
    values, ids = logits.topk(num_candidates, dim=-1)
    kept, complete = _kept_probabilities(values, logits, draw)
    places = _invert(kept.cumsum(-1), draw.uniform)
    tokens = ids.gather(1, places.unsqueeze(1)).squeeze(1)
    rest = (~complete).nonzero().squeeze(1)
    if len(rest) and num_candidates < logits.shape[1]:
        tokens[rest] = _draw_truncated(logits[rest], draw.select(rest), logits.shape[1])
    return tokens


def _kept_probabilities(values: Tensor, logits: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Probabilities of the candidates with those that are cut set to 0, and whether no kept token is missing.

    Args:
        values: [rows, candidates], the largest logits in falling order.
        logits: [rows, vocabulary], all of them.
        draw: The rows' parameters.
    """
    rank = torch.arange(values.shape[1], device=values.device)
    limit = torch.where(draw.top_k > 0, draw.top_k, logits.shape[1]).unsqueeze(1)
    in_top_k = rank < limit
    wide = values.double()
    # What top-k keeps sums to 1. Where it keeps more than the candidates, its sum is only known if it keeps everything.
    sum_is_top_k = (limit <= values.shape[1]).squeeze(1)
    log_sum_all = torch.logsumexp(logits, dim=-1).double()
    log_sum_top_k = torch.logsumexp(wide.masked_fill(~in_top_k, -torch.inf), dim=-1)
    log_sum = torch.where(sum_is_top_k, log_sum_top_k, log_sum_all)
    probabilities = (wide - log_sum.unsqueeze(1)).exp().masked_fill(~in_top_k, 0.0)
    before = probabilities.cumsum(-1) - probabilities
    keep = (before < draw.top_p.unsqueeze(1)) & (probabilities >= draw.min_p.unsqueeze(1) * probabilities[:, :1])
    keep[:, 0] = True
    # The kept set is a prefix of the falling order, so it is complete when a limit cuts within the candidates.
    sum_is_all = (limit >= logits.shape[1]).squeeze(1)
    complete = sum_is_top_k | (sum_is_all & ~keep[:, -1])
    return probabilities * keep, complete
