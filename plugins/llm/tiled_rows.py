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

# Rows of the matrix that a program multiplies: more spill registers at head sizes of 128.
_TILE_ROWS = 64


class RowTiles(Protocol):
    """What attention needs to know of a step's rows.

    Attributes:
        lengths: [tokens] int32, context of each row, its own token included.
        tables: [sequences, blocks] int32, the cache blocks of each sequence.
    """

    lengths: Tensor
    tables: Tensor

    def tiles(self, *, num_kv_heads: int, group: int) -> Sequence[Tiles]:
        """All rows, each in one tile.

        Args:
            num_kv_heads: Of the layer.
            group: Query heads that share a kv head.
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
        self._runs = runs_of(contexts.sequences)
        self._made: dict[tuple[int, int], Sequence[Tiles]] = {}

    def tiles(self, *, num_kv_heads: int, group: int) -> Sequence[Tiles]:
        """See `RowTiles`; made once for all layers of one shape."""
        found = self._made.get((num_kv_heads, group))
        if found is None:
            found = self._made[(num_kv_heads, group)] = self._cut(num_kv_heads, group)
        return found

    def _cut(self, num_kv_heads: int, group: int) -> Sequence[Tiles]:
        starts, counts, sequences = self._runs
        single = counts == 1
        made: list[Tiles] = []
        if single.any():
            splits = num_splits(int(single.sum()), num_kv_heads)
            made.append(self._tiles(starts[single], counts[single], sequences[single], 1, splits))
        if not single.all():
            size = max(2, _TILE_ROWS // group)
            pieces = [
                (start + at, min(size, count - at), sequence)
                for start, count, sequence in zip(
                    starts[~single].tolist(), counts[~single].tolist(), sequences[~single].tolist(), strict=True
                )
                for at in range(0, count, size)
            ]
            columns = np.array(pieces, dtype=np.int64).T
            made.append(self._tiles(columns[0], columns[1], columns[2], size, 1))
        return made

    def _tiles(self, starts: IntArray, counts: IntArray, sequences: IntArray, size: int, splits: int) -> Tiles:
        packed = to_tensor(np.stack((starts, counts, sequences)).astype(np.int32), self._device)
        return Tiles(starts=packed[0], counts=packed[1], sequences=packed[2], size=size, num_splits=splits)


def num_splits(num_tiles: int, num_kv_heads: int) -> int:
    """Parts that contexts are cut into so that few tiles still fill the card; a power of two."""
    wanted = _PROGRAMS // max(1, num_tiles * num_kv_heads)
    return min(_MAX_SPLITS, 1 << max(0, wanted.bit_length() - 1))
