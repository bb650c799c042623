"""Packs sequences of any lengths into one flat batch without padding; only attention sees groups of similar length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:  # its kernels need Triton, which is there on GPUs only
    from sixfold.core.runtime.gpu_layers import Spans

TokenIds = NDArray[np.int64]

Bounds = Sequence[tuple[int, int]]
"""(First, behind last) of each group of a batch that is sorted by length; they cover it in order."""

_MAX_GROWTH = 1.125
_MIN_GROWTH_TOKENS = 2

# What attention over a group costs a layer, in microseconds: least squares over 24 groups of 1-16 sequences of 8-256
# tokens (bfloat16, 12 heads of 32, two threads of a Zen 4). On other machines and models the parts keep their proportion.
_GROUP_US = 100.0
_PADDED_GROUP_US = 94.0  # on top: a gather, a mask and a scatter
_PLACE_US = 0.95
_SCORE_US = 0.0079
_MAX_RUNS = 64  # different lengths in one group; bounds the search for the cheapest grouping


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Neighbours in the flat batch that attention treats as one padded block.

    Attributes:
        start: Flat index of its first token.
        stop: Flat index behind its last token.
        num_sequences: Rows of the block.
        max_tokens: Columns of the block.
        gather: [num_sequences * max_tokens] index into ``start:stop``; a padded place repeats its row's first token, so
            that it holds finite values. None when all rows have ``max_tokens``.
        scatter: [stop - start] place of each real token in the block; None likewise.
        is_real: [num_sequences, 1, 1, max_tokens], False at padded keys; None likewise.
    """

    start: int
    stop: int
    num_sequences: int
    max_tokens: int
    gather: Tensor | None = None
    scatter: Tensor | None = None
    is_real: Tensor | None = None

    @property
    def num_padding(self) -> int:
        """Padded places of the block."""
        return self.num_sequences * self.max_tokens - (self.stop - self.start)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """Sequences sorted by length and laid end to end.

    Attributes:
        order: ``order[i]`` is the caller's index of the i-th sequence here.
        lengths: Tokens of each sequence here; ascending.
        token_ids: [1, total_tokens].
        position_ids: [1, total_tokens], from 0 in each sequence plus the model's offset.
        groups: They cover the flat batch in order; none where attention goes by ``spans``.
        spans: What each row sees, where a kernel for GPUs attends.
        starts: [sequences] flat index of each first token, on the device of the ids.
        token_counts: [sequences], ``lengths`` on the device of the ids.
        num_spare: Rows of padding behind the last sequence that were computed, too.
    """

    order: NDArray[np.intp]
    lengths: NDArray[np.int64]
    token_ids: Tensor
    position_ids: Tensor
    groups: tuple[Group, ...]
    starts: Tensor
    token_counts: Tensor
    spans: Spans | None = None
    num_spare: int = 0

    @property
    def num_padding(self) -> int:
        """Padded places in all groups, and spare rows."""
        return sum(group.num_padding for group in self.groups) + self.num_spare


def near_equal_groups(lengths: NDArray[np.int64]) -> Bounds:
    """Groups whose longest is at most 12.5% (or two tokens) longer than their shortest; for models that pay for padding
    in every layer.

    Args:
        lengths: Ascending.
    """
    bounds: list[tuple[int, int]] = []
    first = 0
    while first < len(lengths):
        shortest = int(lengths[first])
        limit = max(int(shortest * _MAX_GROWTH), shortest + _MIN_GROWTH_TOKENS)
        behind = int(np.searchsorted(lengths, limit, side="right"))
        bounds.append((first, behind))
        first = behind
    return bounds


def cheapest_groups(lengths: NDArray[np.int64]) -> Bounds:
    """The grouping whose attention costs least, where only attention pays for padding: fewer calls against more scores.

    A cut between equal lengths never pays, so the search is over runs of equal lengths: ``best[j]`` is the least cost of
    the first j runs, over all places of the last cut.

    Args:
        lengths: Ascending.
    """
    values, counts = np.unique(lengths, return_counts=True)
    ends: NDArray[np.int64] = np.concatenate(([0], np.cumsum(counts)))
    best: NDArray[np.float64] = np.zeros(len(ends))
    cut: NDArray[np.int64] = np.zeros(len(ends), dtype=np.int64)
    for behind in range(1, len(ends)):
        low = max(0, behind - _MAX_RUNS)
        longest = float(values[behind - 1])
        places = (ends[behind] - ends[low:behind]) * longest
        cost = best[low:behind] + _GROUP_US + places * (_PLACE_US + _SCORE_US * longest)
        cost[:-1] += _PADDED_GROUP_US
        found = int(cost.argmin())
        best[behind], cut[behind] = cost[found], low + found
    bounds: list[tuple[int, int]] = []
    behind = len(values)
    while behind > 0:
        bounds.append((int(ends[cut[behind]]), int(ends[behind])))
        behind = int(cut[behind])
    return bounds[::-1]


def to_tensor(array: NDArray[Any], device: torch.device | str) -> Tensor:
    """The array on the device; shares memory where it can."""
    return torch.from_numpy(array).to(device)  # pyright: ignore[reportUnknownMemberType]  # untyped in torch


def pack(
    sequences: Sequence[TokenIds],
    *,
    position_offset: int,
    device: torch.device,
    group: Callable[[NDArray[np.int64]], Bounds] = cheapest_groups,
) -> PackedBatch:
    """Lays out a batch. None of the sequences may be empty.

    Args:
        sequences: Token ids of each sequence, in any order.
        position_offset: Position id of a first token; above 0 in the RoBERTa family.
        device: Where the index tensors shall be.
        group: Chooses the groups from the ascending lengths.
    """
    order, lengths, starts = sort_by_length(sequences)
    groups = tuple(_group(lengths[first:behind], int(starts[first]), device) for first, behind in group(lengths))
    flat_ids = np.concatenate([sequences[index] for index in cast("list[int]", order.tolist())])
    positions = positions_of(flat_ids, starts, position_offset)
    return PackedBatch(
        order=order,
        lengths=lengths,
        token_ids=to_tensor(flat_ids, device)[None],
        position_ids=to_tensor(positions, device)[None],
        groups=groups,
        starts=to_tensor(starts[:-1], device),
        token_counts=to_tensor(lengths, device),
    )


def sort_by_length(
    sequences: Sequence[TokenIds],
) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.int64]]:
    """(Order, lengths, starts) of the sequences laid end to end from the shortest; the starts end with the total."""
    unsorted = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    order = np.argsort(unsorted, kind="stable")
    lengths = unsorted[order]
    starts: NDArray[np.int64] = np.concatenate(([0], np.cumsum(lengths)))
    return order, lengths, starts


def positions_of(flat_ids: TokenIds, starts: NDArray[np.int64], offset: int) -> NDArray[np.int64]:
    """Position id of each token.

    Args:
        flat_ids: [total_tokens].
        starts: First token of each sequence, and the total.
        offset: Of a first token.
    """
    lengths = np.diff(starts)
    if offset > 0 and (flat_ids == offset - 1).any():
        # A padding token that a client wrote into its text: the RoBERTa family skips it when it counts positions.
        is_padding = flat_ids == offset - 1
        count = np.concatenate(([0], np.cumsum(~is_padding)))
        return np.where(is_padding, offset - 1, count[1:] - np.repeat(count[starts[:-1]], lengths) + offset - 1)
    return np.arange(len(flat_ids)) - np.repeat(starts[:-1], lengths) + offset


def _group(lengths: NDArray[np.int64], start: int, device: torch.device) -> Group:
    num_sequences, max_tokens, total = len(lengths), int(lengths[-1]), int(lengths.sum())
    if lengths[0] == max_tokens:
        return Group(start=start, stop=start + total, num_sequences=num_sequences, max_tokens=max_tokens)
    columns = np.arange(max_tokens)
    is_real = columns < lengths[:, None]
    first_of_row = np.cumsum(lengths) - lengths
    gather = first_of_row[:, None] + np.where(is_real, columns, 0)
    return Group(
        start=start,
        stop=start + total,
        num_sequences=num_sequences,
        max_tokens=max_tokens,
        gather=to_tensor(gather.ravel(), device),
        scatter=to_tensor(np.flatnonzero(is_real), device),
        is_real=to_tensor(is_real[:, None, None, :], device),
    )
