"""Draws tokens from temperature-scaled logits under top-k, top-p and min-p, without sorting the vocabulary.

Only the likeliest tokens matter to a truncated distribution. A row takes its candidates from the top ``_SMALL`` or
``_LARGE`` logits; the rare row whose kept set is larger is sorted in full. Which of the three a row gets depends on that
row alone, so no other member of the batch can change its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sixfold.plugins.llm.tensors import float_list, index_tensor, int_list

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


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnTokens:
    """Tokens of a batch, without having waited for the device.

    Attributes:
        tokens: [rows] int64.
        is_complete: [rows]; False where more tokens are kept than were looked at, so that the row must be drawn by
            `draw_from_sorted`.
    """

    tokens: Tensor
    is_complete: Tensor


def draw_tokens(logits: Tensor, draw: Draw) -> Tensor:
    """One token per row.

    Args:
        logits: [rows, vocabulary] float32, already divided by the temperature.
        draw: The rows' parameters.

    Returns:
        [rows] int64.

    Source: Fan et al. 2018 (top-k), Holtzman et al. 2020 (top-p), Nguyen et al. 2024 (min-p).
    """
    parameters = (int_list(draw.top_k), float_list(draw.top_p), float_list(draw.min_p))
    drawn = begin_draw(logits, draw, [candidates_of(*row) for row in zip(*parameters, strict=True)])
    rest = (~drawn.is_complete).nonzero().squeeze(1)
    if len(rest):
        drawn.tokens[rest] = draw_from_sorted(logits[rest], draw.select(rest))
    return drawn.tokens


def candidates_of(top_k: int, top_p: float, min_p: float) -> int:
    """How many of the likeliest tokens a row with these parameters is drawn from; 0 for all, untruncated."""
    if top_k == 0 and top_p >= 1 and min_p <= 0:
        return 0
    return _SMALL if 0 < top_k <= _SMALL else _LARGE


def begin_draw(logits: Tensor, draw: Draw, candidates: Sequence[int]) -> DrawnTokens:
    """As `draw_tokens`, but leaves the rare row whose kept set is large to the caller, who can see which it is.

    Args:
        logits: As there.
        draw: As there.
        candidates: Of each row, by `candidates_of`.
    """
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    is_complete = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    for count in (0, _SMALL, _LARGE):
        places = [place for place, its in enumerate(candidates) if its == count]
        if not places:
            continue
        rows = index_tensor(places, logits.device)
        if count:
            tokens[rows], is_complete[rows] = _draw_truncated(logits[rows], draw.select(rows), count)
        else:
            tokens[rows] = _draw_from_all(logits[rows], draw.uniform[rows])
    return DrawnTokens(tokens=tokens, is_complete=is_complete)


def draw_from_sorted(logits: Tensor, draw: Draw) -> Tensor:
    """As `draw_tokens`, for rows that keep many tokens: all are sorted."""
    return _draw_truncated(logits, draw, logits.shape[1])[0]


def _draw_from_all(logits: Tensor, uniform: Tensor) -> Tensor:
    cumulated = torch.softmax(logits, dim=-1).cumsum(-1, dtype=torch.float64)
    return _invert(cumulated, uniform)


def _invert(cumulated: Tensor, uniform: Tensor) -> Tensor:
    """The first place where the cumulated probability exceeds the number; never a place of probability 0."""
    target = (uniform * cumulated[:, -1]).unsqueeze(1)
    return torch.searchsorted(cumulated, target, right=True).squeeze(1).clamp_(max=cumulated.shape[1] - 1)


def _draw_truncated(logits: Tensor, draw: Draw, num_candidates: int) -> tuple[Tensor, Tensor]:
    """Tokens, and where they are final."""
    num_candidates = min(num_candidates, logits.shape[1])
    values, ids = logits.topk(num_candidates, dim=-1)
    kept, complete = _kept_probabilities(values, logits, draw)
    places = _invert(kept.cumsum(-1), draw.uniform)
    tokens = ids.gather(1, places.unsqueeze(1)).squeeze(1)
    return tokens, complete if num_candidates < logits.shape[1] else torch.ones_like(complete)


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
