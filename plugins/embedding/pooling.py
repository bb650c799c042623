"""Pools the hidden states of a flat batch to one vector a sequence, in float32, by sentence-transformers' rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatHidden:
    """Hidden states of sequences laid end to end.

    Attributes:
        hidden: [total_tokens, dim], any float type.
        starts: [sequences], flat index of each first token.
        lengths: [sequences], none 0.
    """

    hidden: Tensor
    starts: Tensor
    lengths: Tensor

    def without_prompts(self, num_prompt_tokens: Tensor) -> FlatHidden:
        """Leaves out the first tokens of each sequence; a sequence that is all prompt keeps its last token.

        Args:
            num_prompt_tokens: [sequences], tokens to leave out.
        """
        skip = torch.minimum(num_prompt_tokens, self.lengths - 1)
        total = self.hidden.shape[0]
        segment = torch.repeat_interleave(self.lengths, output_size=total)
        kept = torch.arange(total, device=segment.device) - self.starts[segment] >= skip[segment]
        lengths = self.lengths - skip
        return FlatHidden(hidden=self.hidden[kept], starts=lengths.cumsum(0) - lengths, lengths=lengths)


def _sum(flat: FlatHidden, weights: Tensor | None = None) -> Tensor:
    # A bag over the flat rows in place of an index_add: parallel, and it sums in a fixed order.
    hidden = flat.hidden.float()
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    return F.embedding_bag(rows, hidden, flat.starts, mode="sum", per_sample_weights=weights)


def _mean(flat: FlatHidden) -> Tensor:
    return _sum(flat) / flat.lengths[:, None]


def _mean_sqrt_len(flat: FlatHidden) -> Tensor:
    return _sum(flat) / flat.lengths[:, None].sqrt()


def _weighted_mean(flat: FlatHidden) -> Tensor:
    total = flat.hidden.shape[0]
    first = torch.repeat_interleave(flat.starts, flat.lengths, output_size=total)
    weights = (torch.arange(total, device=first.device) - first + 1).float()
    lengths = flat.lengths[:, None].float()
    return _sum(flat, weights) / (lengths * (lengths + 1) / 2)


def _max(flat: FlatHidden) -> Tensor:
    hidden = flat.hidden.float()
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    return F.embedding_bag(rows, hidden, flat.starts, mode="max")


def _first(flat: FlatHidden) -> Tensor:
    return flat.hidden[flat.starts].float()


def _last(flat: FlatHidden) -> Tensor:
    return flat.hidden[flat.starts + flat.lengths - 1].float()


POOLING: Mapping[str, Callable[[FlatHidden], Tensor]] = {
    "cls": _first,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
"""sentence-transformers' pooling modes; each maps a flat batch to [sequences, dim] float32."""


def pool(flat: FlatHidden, modes: tuple[str, ...]) -> Tensor:
    """Joins the vectors of several modes, in the order of ``modes``: [sequences, len(modes) * dim]."""
    vectors = [POOLING[mode](flat) for mode in modes]
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=-1)
