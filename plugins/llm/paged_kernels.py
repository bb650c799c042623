"""Triton kernels of the paged cache on GPUs: keys and values go in, queries attend to blocks where they lie.

A program attends with a *tile* of consecutive tokens of one sequence, all query heads that share a kv head folded into its
rows, and walks through the context with a running softmax. Where tiles are few, the context is cut into splits whose results
are merged by a second kernel, as in flash decoding. Prompts have a kernel of their own, see `chunk_kernels`.

Nothing here depends on values on the host, so all of it can be captured in a CUDA graph. The kernels run on a CPU, too,
under Triton's interpreter (``TRITON_INTERPRET=1``); that is how tests hold them to plain attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sixfold.plugins.llm import triton_kernels
from sixfold.plugins.llm.cache_policy import CacheScheme
from sixfold.plugins.llm.kv_layer import LEAST_MAXIMUM, run_bytes, scales_at

_KERNELS: Any = triton_kernels  # typed as Triton's decorators leave them

# Context tokens of one turn of the loop, and bytes of their keys: more spill registers.
_MIN_CONTEXT, _MAX_CONTEXT, _MAX_KEY_BYTES = 16, 64, 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Runs of consecutive rows of the flat batch that belong to one sequence each.

    Attributes:
        starts: [tiles] int32, the first row of each.
        counts: [tiles] int32, rows of each, at most ``size``; 0 for padding.
        sequences: [tiles] int32, row of ``tables``.
        size: Rows that a tile may have.
        num_splits: Parts that each context is cut into.
    """

    starts: Tensor
    counts: Tensor
    sequences: Tensor
    size: int
    num_splits: int


def store(
    key: Tensor,
    value: Tensor,
    cache: Tensor,
    blocks: Tensor,
    offsets: Tensor,
    *,
    block_size: int | None = None,
    scheme: CacheScheme | None = None,
) -> None:
    """Writes the keys and values of a step.

    Args:
        key: [kv heads, tokens, head dim]; the last dimension contiguous.
        value: As ``key``.
        cache: [blocks, 2, kv heads, block size, head dim], contiguous.
        blocks: [tokens] int64, where each token goes.
        offsets: [tokens] int64, its place in the block.
        block_size: Tokens of a block, where the cache's shape does not tell.
        scheme: Of its numbers; with one, the cache is that of a `ByteLayer`.
    """
    num_kv_heads, num_tokens, head_dim = key.shape
    grid = (num_tokens, num_kv_heads)
    strides = (key.stride(0), key.stride(1), value.stride(0), value.stride(1))
    sizes = {"KV_HEADS": num_kv_heads, "DIM": head_dim, "DIM_PADDED": next_power_of_2(head_dim)}
    if scheme is None:
        given = (key, value, cache, blocks, offsets)
        launch(_KERNELS.store_kernel, grid, *given, *strides, BLOCK_SIZE=cache.shape[3], **sizes)
        return
    assert block_size is not None
    launch(
        _KERNELS.store_bytes_kernel,
        grid,
        *(key, value, cache, cache.view(torch.float32), blocks, offsets),
        *strides,
        RUN_BYTES=run_bytes(block_size, head_dim),
        SCALES_AT=scales_at(block_size, head_dim),
        IS_FP8=scheme == "fp8",
        LEAST=LEAST_MAXIMUM,
        **sizes,
    )


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
    """Causal attention of the rows of ``tiles`` to their contexts in the cache; their keys must be in it.

    Args:
        query: [heads, tokens, head dim]; the last dimension contiguous.
        cache: [blocks, 2, kv heads, block size, head dim], contiguous.
        tables: [sequences, blocks] int32, blocks of each sequence in order.
        lengths: [tokens] int32, context of each row, its own token included.
        tiles: Which rows; of more than one split only if their size is 1.
        output: [tokens, heads, head dim], contiguous; only rows of the tiles are written.
        scaling: Factor on the scores.
        window: Tokens, its own included, that a row sees; None for all.
        softcap: Scores s become ``softcap * tanh(s / softcap)``; None to leave them.
        block_size: As for `store`.
        scheme: As for `store`.
    """
    num_heads, _, head_dim = query.shape
    num_kv_heads = cache.shape[2]
    padded_dim = next_power_of_2(head_dim)
    partial = _partial_results(query, output, tiles)
    launch(
        _KERNELS.attend_kernel,
        (len(tiles.starts), num_kv_heads, tiles.num_splits),
        *(query, cache, cache if scheme is None else cache.view(torch.float32), tables, lengths),
        *(tiles.starts, tiles.counts, tiles.sequences, output, *partial),
        *(query.stride(0), query.stride(1), tables.stride(0), scaling),
        **cache_constants(cache, head_dim, block_size, scheme),
        GROUP=num_heads // num_kv_heads,
        ROWS=max(16, next_power_of_2(tiles.size * num_heads // num_kv_heads)),
        CONTEXT=max(_MIN_CONTEXT, min(_MAX_CONTEXT, _MAX_KEY_BYTES // (padded_dim * query.dtype.itemsize))),
        WINDOW=window or 0,
        SOFTCAP=softcap or 0.0,
        SPLITS=tiles.num_splits,
        PRECISION="ieee" if query.dtype is torch.float32 else "tf32",
        num_warps=4,
        num_stages=2,
    )
    if tiles.num_splits > 1:
        sizes = {"HEADS": num_heads, "DIM": head_dim, "DIM_PADDED": padded_dim, "SPLITS": tiles.num_splits}
        launch(_KERNELS.merge_kernel, (len(tiles.starts), num_heads), *partial, output, tiles.starts, **sizes)


def _partial_results(query: Tensor, output: Tensor, tiles: Tiles) -> tuple[Tensor, Tensor, Tensor]:
    """Where splits leave what they found, each with its maximum and sum; of one split, which needs none, anything."""
    num_heads, num_tokens, head_dim = query.shape
    if tiles.num_splits == 1:
        return output, output, output
    num_parts = num_tokens * num_heads * tiles.num_splits
    sums = torch.empty((2, num_parts), dtype=torch.float32, device=query.device)
    return torch.empty((num_parts, head_dim), dtype=torch.float32, device=query.device), sums[0], sums[1]


def cache_constants(
    cache: Tensor, head_dim: int, block_size: int | None, scheme: CacheScheme | None
) -> dict[str, int | str]:
    """What kernels that read a cache are built for; the arguments are those of `attend`."""
    tokens = cache.shape[3] if block_size is None else block_size
    return {
        "KV_HEADS": cache.shape[2],
        "BLOCK_SIZE": tokens,
        "RUN": tokens * head_dim if scheme is None else run_bytes(tokens, head_dim),
        "SCALES_AT": 0 if scheme is None else scales_at(tokens, head_dim),
        "KEPT": scheme or "",
        "DIM": head_dim,
        "DIM_PADDED": max(16, next_power_of_2(head_dim)),
    }


def next_power_of_2(number: int) -> int:
    """The least that is not below ``number``."""
    return 1 << (number - 1).bit_length()


def launch(kernel: Any, grid: tuple[int, ...], *arguments: object, **constants: object) -> None:
    """Starts a kernel, unless it has no programs."""
    if all(grid):
        kernel[grid](*arguments, **constants)
