"""Runs a transformer over flat batches on a GPU: one transfer in, steps of a few sizes recorded as CUDA graphs.

A graph has a fixed number of rows and reads them from fixed places. A batch is padded to the next size with rows that see
nothing and that nobody reads; sizes are an eighth apart, so less than 7% of the rows are padding on average.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sixfold.core.runtime.cuda_graphs import Capture
from sixfold.core.runtime.gpu_layers import Spans
from sixfold.plugins.embedding.attention import PackedAttention
from sixfold.plugins.embedding.forward import position_offset
from sixfold.plugins.embedding.packing import PackedBatch, TokenIds, positions_of, sort_by_length

_LOG = logging.getLogger(__name__)

# Rows of the input.
_IDS, _POSITIONS, _STARTS, _ENDS = range(4)


def graph_sizes(max_tokens: int) -> list[int]:
    """Rows of the graphs: multiples of 64, from 512 on an eighth apart.

    Args:
        max_tokens: Rows of the largest.
    """
    sizes: list[int] = []
    at = 64
    while at < max_tokens:
        sizes.append(at)
        at += max(64, (1 << at.bit_length() - 1) // 8)
    return [*sizes, max_tokens]


class FlatForward:
    """See `Forward`. Used by the device thread alone; what it returns holds until its next call.

    Args:
        model: A transformers model whose attention function is ``attention``, on the device.
        attention: See there.
        mode: "fused" or "packed".
    """

    def __init__(self, model: nn.Module, attention: PackedAttention, *, mode: str) -> None:
        self.model: Any = model
        self.attention = attention
        self.device: torch.device = next(model.parameters()).device
        self.position_offset = position_offset(model)
        self._sizes: list[int] = []
        self._replays: dict[int, Callable[[], None]] = {}
        self._input = torch.empty(0)
        self._hidden: Tensor | None = None
        self.mode = mode

    def __call__(self, sequences: Sequence[TokenIds]) -> tuple[Tensor, PackedBatch]:
        """See `Forward`."""
        order, lengths, starts = sort_by_length(sequences)
        total = int(starts[-1])
        at = bisect.bisect_left(self._sizes, total)
        size = self._sizes[at] if at < len(self._sizes) else total
        host = self._host_tensor(4 * size + 2 * len(lengths))
        numbers: NDArray[np.int64] = host.numpy()
        flat_ids = np.concatenate([sequences[index] for index in cast("list[int]", order.tolist())])
        self._fill(numbers[: 4 * size].reshape(4, size), flat_ids, starts)
        numbers[4 * size :] = np.concatenate((starts[:-1], lengths))
        # The host's memory is kept by torch's own cache until the transfer is over.
        sent = host.to(self.device, non_blocking=True)
        rows = sent[: 4 * size].view(4, size)
        replay = self._replays.get(size)
        if replay is None:
            hidden = self._compute(rows)
        else:
            self._rows(size).copy_(rows)
            replay()
            assert self._hidden is not None, "made by the first capture"
            hidden = self._hidden
        batch = self._batch(rows, order, lengths, sent[4 * size :].view(2, -1), num_spare=size - total)
        return hidden[:total], batch

    def record(self, max_tokens: int, capture: Capture) -> None:
        """Records steps of all sizes, the largest first; computes them as before if the model can't be recorded.

        Args:
            max_tokens: Rows of the largest.
            capture: Makes a call repeatable.
        """
        sizes = graph_sizes(max_tokens)
        self._input = torch.zeros(4 * sizes[-1], dtype=torch.int64, device=self.device)
        try:
            with torch.inference_mode():
                replays = {size: capture(self._call(size)) for size in reversed(sizes)}
        except RuntimeError as error:  # the model does what a graph can't hold, such as asking for a value
            _LOG.warning("Steps are not recorded as CUDA graphs, so small ones take longer: %s", error)
            self._hidden = None
            return
        self._sizes, self._replays = sizes, replays

    def _call(self, size: int) -> Callable[[], None]:
        rows = self._rows(size)
        rows[_STARTS:] = size  # padding, until the first batch

        def call() -> None:
            hidden = self._compute(rows)
            if self._hidden is None:  # before the first graph is recorded: its call is run once for warmth
                self._hidden = torch.empty_like(hidden)
            self._hidden[:size].copy_(hidden)

        return call

    def _rows(self, size: int) -> Tensor:
        return self._input[: 4 * size].view(4, size)

    def _compute(self, rows: Tensor) -> Tensor:
        nothing = np.zeros(0, dtype=np.int64)
        batch = self._batch(rows, nothing, nothing, rows[:2, :0])
        with self.attention.running(batch):
            output = self.model(input_ids=batch.token_ids, position_ids=batch.position_ids)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _fill(self, numbers: NDArray[np.int64], flat_ids: TokenIds, starts: NDArray[np.int64]) -> None:
        total, lengths = len(flat_ids), np.diff(starts)
        numbers[_IDS, :total] = flat_ids
        numbers[_POSITIONS, :total] = positions_of(flat_ids, starts, self.position_offset)
        numbers[_STARTS, :total] = np.repeat(starts[:-1], lengths)
        numbers[_ENDS, :total] = np.repeat(starts[1:], lengths)
        numbers[:_STARTS, total:] = 0
        numbers[_STARTS:, total:] = numbers.shape[1]

    def _batch(
        self,
        rows: Tensor,
        order: NDArray[np.intp],
        lengths: NDArray[np.int64],
        sequences: Tensor,
        *,
        num_spare: int = 0,
    ) -> PackedBatch:
        return PackedBatch(
            order=order,
            lengths=lengths,
            token_ids=rows[_IDS][None],
            position_ids=rows[_POSITIONS][None],
            groups=(),
            starts=sequences[0],
            token_counts=sequences[1],
            spans=Spans(rows[_STARTS], rows[_ENDS]),
            num_spare=num_spare,
        )

    def _host_tensor(self, num_numbers: int) -> Tensor:
        return torch.empty(num_numbers, dtype=torch.int64, pin_memory=self.device.type == "cuda")
