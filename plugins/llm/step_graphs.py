"""Small steps recorded as CUDA graphs: a replay starts hundreds of kernels by one call of the host.

Without it a decoding step of a 1B model is bound by the host, whatever the card. A graph has a fixed number of rows and
reads its input from fixed places; a step is padded with rows that attend to nothing and write into the padding block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sixfold.core.runtime.cuda_graphs import Capture
from sixfold.core.runtime.events import recorded_event
from sixfold.plugins.llm.batch_layout import BatchLayout
from sixfold.plugins.llm.rows import AttentionRows, runs_of
from sixfold.plugins.llm.tensors import to_tensor

if TYPE_CHECKING:  # its kernels need Triton, which is there on GPUs only
    from sixfold.plugins.llm.paged_kernels import Tiles

# Each row of a graph attends by itself, so a longer chunk would read its context once a token.
_MAX_CHUNK = 16

# Places of a row's numbers in the input.
_TOKEN, _POSITION, _BLOCK, _OFFSET, _LENGTH, _SEQUENCE, _CARRIED = range(7)
_NUM_NUMBERS = 7


def with_carried(token_ids: Tensor, carried: Tensor, chosen: Tensor) -> Tensor:
    """Tokens of rows, those that the step before chose put in their places.

    Args:
        token_ids: [rows].
        carried: [rows]; see `BatchLayout.carried`.
        chosen: [tokens]; -1 where there is none: what is computed from it counts for nothing.
    """
    found = chosen[carried.clamp(min=0)].clamp(min=0).to(token_ids.dtype)
    return torch.where(carried >= 0, found, token_ids)


def row_counts(max_rows: int) -> list[int]:
    """Rows of the graphs: few sizes, each at most 8 rows or an eighth too large."""
    sizes = [n for n in (1, 2, 4) if n < max_rows]
    at = 8
    while at < max_rows:
        sizes.append(at)
        at += max(8, at // 8 // 8 * 8)
    return [*sizes, max_rows]


class _FixedRows:
    """Rows of one token each, at places that do not move; the tiles of a graph."""

    def __init__(self, rows: Tensor, tables: Tensor, starts: Tensor, counts: Tensor) -> None:
        self.lengths = rows[_LENGTH]
        self.tables = tables
        self._columns = (starts, counts, rows[_SEQUENCE])

    def tiles(self, *, num_kv_heads: int, group: int, chunk_rows: int) -> Sequence[Tiles]:
        """See `RowTiles`."""
        del group, chunk_rows
        from sixfold.plugins.llm.paged_kernels import Tiles
        from sixfold.plugins.llm.tiled_rows import num_splits

        starts, counts, sequences = self._columns
        splits = num_splits(len(starts), num_kv_heads)
        return (Tiles(starts=starts, counts=counts, sequences=sequences, size=1, num_splits=splits),)


class StepGraphs:
    """Graphs of steps of several sizes.

    Args:
        compute: Fills the cache for a layout and returns the logits of its ``logit_rows``, [rows, vocabulary].
        capture: Makes it repeatable.
        device: Where.
        max_rows: Rows of the largest graph.
        max_blocks: Cache blocks of the longest sequence.

    Raises:
        RuntimeError: The model can't be captured.
    """

    def __init__(
        self,
        compute: Callable[[BatchLayout], Tensor | None],
        capture: Capture,
        *,
        device: torch.device,
        max_rows: int,
        max_blocks: int,
    ) -> None:
        self._max_blocks = max_blocks
        pinned = device.type == "cuda"
        self._host_rows = torch.zeros(_NUM_NUMBERS * max_rows, dtype=torch.int32, pin_memory=pinned)
        self._host_tables = torch.zeros(max_rows * max_blocks, dtype=torch.int32, pin_memory=pinned)
        self._rows = torch.zeros(_NUM_NUMBERS * max_rows, dtype=torch.int32, device=device)
        self._tables = torch.zeros((max_rows, max_blocks), dtype=torch.int32, device=device)
        self._starts = torch.arange(max_rows, dtype=torch.int32, device=device)
        self._ones = torch.ones(max_rows, dtype=torch.int32, device=device)
        self._logit_rows = torch.arange(max_rows, device=device)
        self._sizes = row_counts(max_rows)
        self._copied: Any = None
        self._logits: Tensor | None = None
        # The largest first: the others' memory is then part of its.
        self._replays = {size: capture(self._call(compute, size)) for size in reversed(self._sizes)}

    def can_run(self, layout: BatchLayout) -> bool:
        """Whether a graph holds the step: one of decodes and their drafts, no long contexts beyond the model's."""
        if layout.image_features is not None or layout.position_ids.ndim > 2:
            return False  # a graph's input has no place for features, nor for positions in several directions
        contexts = layout.contexts
        if len(contexts.sequences) > self._sizes[-1] or contexts.tables.shape[1] > self._max_blocks:
            return False
        return len(layout.logit_rows) > 0 and int(runs_of(contexts.sequences)[1].max()) <= _MAX_CHUNK

    def run(self, layout: BatchLayout, chosen: Tensor | None = None) -> Tensor:
        """Computes the step.

        Args:
            layout: Made on the host.
            chosen: What the step before chose, if some of its tokens are carried.

        Returns:
            Logits of its ``logit_rows``; they hold until the next step.
        """
        contexts = layout.contexts
        num_rows = len(contexts.sequences)
        size = next(size for size in self._sizes if size >= num_rows)
        if self._copied is not None:
            self._copied.synchronize()  # the last step's input may still be on its way
        self._fill_rows(layout, size)
        if layout.carried is not None and chosen is not None:
            numbers = self._numbers(size)
            numbers[_TOKEN].copy_(with_carried(numbers[_TOKEN], numbers[_CARRIED], chosen))
        num_sequences, num_blocks = contexts.tables.shape
        tables = self._host_tables[: num_sequences * num_blocks].view(num_sequences, num_blocks)
        tables.copy_(to_tensor(contexts.tables, torch.device("cpu")))
        self._tables[:num_sequences, :num_blocks].copy_(tables, non_blocking=True)
        if self._tables.is_cuda:
            self._copied = recorded_event(self._tables.device)
        self._replays[size]()
        assert self._logits is not None, "made by the first capture"
        wanted = layout.logit_rows
        if bool((wanted == torch.arange(len(wanted))).all()):
            return self._logits[: len(wanted)]
        return self._logits[wanted.to(self._logits.device)]

    def _fill_rows(self, layout: BatchLayout, size: int) -> None:
        contexts = layout.contexts
        num_rows = len(contexts.sequences)
        host = self._host_rows[: _NUM_NUMBERS * size].view(_NUM_NUMBERS, size)
        numbers = host.numpy()
        numbers[:, num_rows:] = 0
        numbers[_TOKEN, :num_rows] = layout.token_ids[0].numpy()
        numbers[_POSITION, :num_rows] = layout.position_ids[0].numpy()
        numbers[_BLOCK, :num_rows] = layout.blocks.numpy()
        numbers[_OFFSET, :num_rows] = layout.offsets.numpy()
        numbers[_LENGTH, :num_rows] = contexts.lengths
        numbers[_SEQUENCE, :num_rows] = contexts.sequences
        numbers[_CARRIED] = -1
        if layout.carried is not None:
            numbers[_CARRIED, :num_rows] = layout.carried
        self._numbers(size).copy_(host, non_blocking=True)

    def _numbers(self, size: int) -> Tensor:
        return self._rows[: _NUM_NUMBERS * size].view(_NUM_NUMBERS, size)

    def _call(self, compute: Callable[[BatchLayout], Tensor | None], size: int) -> Callable[[], None]:
        rows = self._numbers(size)
        none = np.zeros(0, dtype=np.int64)  # the tiles say all
        layout = BatchLayout(
            token_ids=rows[_TOKEN].unsqueeze(0),
            position_ids=rows[_POSITION].unsqueeze(0),
            blocks=rows[_BLOCK],
            offsets=rows[_OFFSET],
            decodes=(),
            prefills=(),
            contexts=AttentionRows(rows=none, sequences=none, lengths=none, tables=none, num_tokens=0),
            sampled=(),
            logit_rows=self._logit_rows[:size],
            tiles=_FixedRows(rows, self._tables, self._starts[:size], self._ones[:size]),
        )

        def call() -> None:
            logits = compute(layout)
            assert logits is not None, "all rows' logits are wanted"
            if self._logits is None:  # before the first graph is recorded: its call is run once for warmth
                self._logits = torch.empty((self._sizes[-1], logits.shape[1]), dtype=logits.dtype, device=logits.device)
            self._logits[:size].copy_(logits)

        return call
