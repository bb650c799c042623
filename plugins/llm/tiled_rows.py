"""A step's rows cut into tiles for the kernels of `paged_kernels`, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sixfold.plugins.llm.paged_kernels import Tiles
from sixfold.plugins.llm.rows import AttentionRows, runs_of
from sixfold.plugins.llm.sampling import IntArray
from sixfold.plugins.llm.tensors import to_tensor

# Programs of a launch that keep a large card busy: two on each of an H100's 132 multiprocessors.
_PROGRAMS = 264

_MAX_SPLITS = 16


class RowTiles(Protocol):
    """What attention needs to know of a step's rows.

    Attributes:
        lengths: [tokens] int32, context of each row, its own token included.
        tables: [sequences, blocks] int32, the cache blocks of each sequence.
    """

    lengths: Tensor
    tables: Tensor

    def tiles(self, *, num_kv_heads: int, group: int, chunk_rows: int) -> Sequence[Tiles]:
        """All rows, each in one tile.

        Args:
            num_kv_heads: Of the layer.
            group: Query heads that share a kv head.
            chunk_rows: Tokens times ``group`` of a tile of several tokens.
        """
        ...


class TiledRows:
    """The rows of one step. Single tokens become tiles of one row, chunks tiles of as many as a program can take.

    Args:
        contexts: The rows.
        device: Where the tiles go.
    """

    def __init__(self, contexts: AttentionRows, device: torch.device) -> None:
        self.lengths = to_tensor(contexts.lengths.astype(np.int32), device)
        self.tables = to_tensor(contexts.tables.astype(np.int32), device)
        self._device = device
        self._contexts = contexts.lengths
        self._runs = runs_of(contexts.sequences)
        self._made: dict[tuple[int, int, int], Sequence[Tiles]] = {}

    def tiles(self, *, num_kv_heads: int, group: int, chunk_rows: int) -> Sequence[Tiles]:
        """See `RowTiles`; made once for all layers of one shape."""
        shape = (num_kv_heads, group, chunk_rows)
        found = self._made.get(shape)
        if found is None:
            found = self._made[shape] = self._cut(num_kv_heads, max(2, chunk_rows // group))
        return found

    def _cut(self, num_kv_heads: int, size: int) -> Sequence[Tiles]:
        starts, counts, sequences = self._runs
        single = counts == 1
        made: list[Tiles] = []
        if single.any():
            splits = num_splits(int(single.sum()), num_kv_heads)
            made.append(self._tiles(starts[single], counts[single], sequences[single], 1, splits))
        if not single.all():
            columns = _pieces(starts[~single], counts[~single], sequences[~single], size)
            # The longest contexts first: what is left for the end, when programs run out, is short.
            order = np.argsort(-self._contexts[columns[0]], kind="stable")
            made.append(self._tiles(columns[0][order], columns[1][order], columns[2][order], size, 1))
        return made

    def _tiles(self, starts: IntArray, counts: IntArray, sequences: IntArray, size: int, splits: int) -> Tiles:
        packed = to_tensor(np.stack((starts, counts, sequences)).astype(np.int32), self._device)
        return Tiles(starts=packed[0], counts=packed[1], sequences=packed[2], size=size, num_splits=splits)


def _pieces(starts: IntArray, counts: IntArray, sequences: IntArray, size: int) -> tuple[IntArray, IntArray, IntArray]:
    """Runs of rows, `runs_of`, cut into runs of at most ``size``."""
    num_pieces = -(-counts // size)
    run = np.repeat(np.arange(len(counts)), num_pieces)
    at = (np.arange(len(run)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)) * size
    return starts[run] + at, np.minimum(size, counts[run] - at), sequences[run]


def num_splits(num_tiles: int, num_kv_heads: int) -> int:
    """Parts that contexts are cut into so that few tiles still fill the card; a power of two."""
    wanted = _PROGRAMS // max(1, num_tiles * num_kv_heads)
    return min(_MAX_SPLITS, 1 << max(0, wanted.bit_length() - 1))
