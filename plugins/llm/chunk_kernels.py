"""Attention of prompts on GPUs: all chunks of a step by one Triton kernel, over cache blocks where they lie.

A program takes a tile of consecutive tokens of one sequence, with all query heads that share a kv head, and walks over the
blocks of its context; the keys that all of its rows see, most of a long context's, are not masked. Lengths are data, not
constants: whatever comes, one kernel serves a layer, and it is compiled when the model starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sixfold.plugins.llm import paged_kernels, triton_chunks
from sixfold.plugins.llm.cache_policy import CacheScheme
from sixfold.plugins.llm.kv_layer import KvLayer
from sixfold.plugins.llm.paged_kernels import Tiles, cache_constants, launch, next_power_of_2
from sixfold.plugins.llm.tiled_rows import RowTiles

_KERNELS: Any = triton_chunks  # typed as Triton's decorators leave them


@dataclass(frozen=True, slots=True)
class ChunkTile:
    """How much one program does at once, and how Triton builds it.

    Attributes:
        rows: Tokens times query heads of a kv head, at most; a power of 2.
        keys: Looked at in one go; a power of 2, at least 16.
        warps: That share the work.
        stages: Blocks of keys that are on their way or in use.
    """

    rows: int
    keys: int
    warps: int
    stages: int


TILES: dict[int, ChunkTile] = {
    64: ChunkTile(rows=128, keys=64, warps=8, stages=3),
    128: ChunkTile(rows=128, keys=64, warps=8, stages=3),
}
"""By padded head dim, for half precision: no registers are spilled on Hopper. ``bench/gpu/native_prompts.py`` times others."""
_TILE = ChunkTile(rows=64, keys=64, warps=4, stages=3)
_WIDE_TILE = ChunkTile(rows=64, keys=32, warps=4, stages=2)
_WIDEST_TILE = ChunkTile(rows=16, keys=16, warps=8, stages=2)
# Products of float32 are unrolled: 64 keys and 64 rows of 128 numbers are 28 s of ptxas's time, and 7 KiB a thread of spills.
_EXACT_TILE = ChunkTile(rows=64, keys=16, warps=8, stages=2)
_WIDE_EXACT_TILE = ChunkTile(rows=32, keys=16, warps=8, stages=2)


def chunk_tile(head_dim: int, dtype: torch.dtype) -> ChunkTile:
    """The tile for queries of this size and type."""
    padded = next_power_of_2(head_dim)
    if padded > 256:
        return _WIDEST_TILE
    if dtype is torch.float32:
        return _EXACT_TILE if padded <= 64 else _WIDE_EXACT_TILE
    return _WIDE_TILE if padded > 128 else TILES.get(padded, _TILE)


def attend_rows(
    query: Tensor, cache: KvLayer, rows: RowTiles, *, scaling: float | None, window: int | None, softcap: float | None
) -> Tensor:
    """Attention of all rows of a step, whose keys and values are in the cache: one launch for single tokens, one for chunks.

    Args:
        query: [heads, tokens, head dim]; the last dimension contiguous.
        cache: Of the layer.
        rows: The step's.
        scaling: Factor on the scores; 1/sqrt(head dim) if None.
        window: As for `attend`.
        softcap: As for `attend`.

    Returns:
        [tokens, heads, head dim].
    """
    num_heads, num_tokens, head_dim = query.shape
    output = torch.empty((num_tokens, num_heads, head_dim), dtype=query.dtype, device=query.device)
    group, chunk_rows = num_heads // cache.num_kv_heads, chunk_tile(head_dim, query.dtype).rows
    for tiles in rows.tiles(num_kv_heads=cache.num_kv_heads, group=group, chunk_rows=chunk_rows):
        attend_tiles = paged_kernels.attend if tiles.size == 1 else attend
        attend_tiles(
            query,
            cache.tensor,
            rows.tables,
            rows.lengths,
            tiles,
            output,
            scaling=head_dim**-0.5 if scaling is None else scaling,
            window=window,
            softcap=softcap,
            block_size=cache.block_size,
            scheme=cache.scheme,
        )
    return output


def attend(
    query: Tensor,
    cache: Tensor,
    tables: Tensor,
    lengths: Tensor,
    tiles: Tiles,
    output: Tensor,
    *,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    block_size: int | None = None,
    scheme: CacheScheme | None = None,
) -> None:
    """Causal attention of chunks; as `paged_kernels.attend`, for tiles of several rows and one split.

    Args:
        query: [heads, tokens, head dim]; the last dimension contiguous.
        cache: [blocks, 2, kv heads, block size, head dim], contiguous, or bytes of a ``scheme``.
        tables: [sequences, blocks] int32, blocks of each sequence in order.
        lengths: [tokens] int32, context of each row, its own token included.
        tiles: Which rows; consecutive tokens each.
        output: [tokens, heads, head dim], contiguous; only rows of the tiles are written.
        scaling: Factor on the scores, above 0.
        window: Tokens, its own included, that a row sees; None for all.
        softcap: Scores s become ``softcap * tanh(s / softcap)``; None to leave them.
        block_size: As for `paged_kernels.store`.
        scheme: As for `paged_kernels.store`.
    """
    num_heads, _, head_dim = query.shape
    num_kv_heads = cache.shape[2]
    group = num_heads // num_kv_heads
    tile = chunk_tile(head_dim, query.dtype)
    launch(
        _KERNELS.attend_chunks_kernel,
        (len(tiles.starts), num_kv_heads),
        *(query, cache, cache if scheme is None else cache.view(torch.float32), tables, lengths),
        *(tiles.starts, tiles.counts, tiles.sequences, output),
        *(query.stride(0), query.stride(1), tables.stride(0), scaling),
        **cache_constants(cache, head_dim, block_size, scheme),
        GROUP=group,
        ROWS=max(16, next_power_of_2(tiles.size * group)),
        KEYS=tile.keys,
        WINDOW=window or 0,
        SOFTCAP=softcap or 0.0,
        PRECISION="ieee" if query.dtype is torch.float32 else "tf32",
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
