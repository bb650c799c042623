"""The key/value cache: its tensors, and the blocks that sequences hold in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sixfold.plugins.llm.block_pool import BlockPool
from sixfold.plugins.llm.cached_tokens import CachedTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """What one layer keeps per token."""

    num_kv_heads: int
    head_dim: int

    def token_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one token's key and value."""
        return 2 * self.num_kv_heads * self.head_dim * dtype.itemsize


class KvCache:
    """Cache tensors of all layers under one table of blocks. Owned by the device thread.

    Args:
        layers: One shape per layer.
        num_blocks: Blocks per layer, the padding block included.
        block_size: Tokens per block.
        dtype: Of keys and values.
        device: Where the tensors live.
    """

    def __init__(
        self,
        layers: tuple[LayerShape, ...],
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self.pool = BlockPool(num_blocks)
        # Zeros, not empty: masked positions are multiplied by 0, and 0 times NaN is NaN. On Linux the pages of a zeroed
        # tensor take memory only when they are first written.
        self.tensors: tuple[Tensor, ...] = tuple(
            torch.zeros((num_blocks, 2, s.num_kv_heads, block_size, s.head_dim), dtype=dtype, device=device)
            for s in layers
        )

    @property
    def num_tokens(self) -> int:
        """Tokens that fit in all."""
        return self.pool.num_usable * self.block_size

    @property
    def num_bytes(self) -> int:
        """Size of the tensors."""
        return sum(t.nbytes for t in self.tensors)

    def reserve(self, sequence: CachedTokens, num_tokens: int) -> int:
        """Takes blocks until ``num_tokens`` more can be computed, or none is left; returns how many can be."""
        wanted = sequence.num_computed + num_tokens
        missing = -(-wanted // self.block_size) - sequence.num_blocks
        if missing > 0:
            sequence.add_blocks(self.pool.allocate(missing))
        return min(num_tokens, sequence.num_blocks * self.block_size - sequence.num_computed)

    def free(self, sequence: CachedTokens) -> None:
        """Gives all of the sequence's blocks back; it can start over."""
        blocks = sequence.take_blocks()
        if sequence.suspect and blocks:
            # What is left in a block is read again as masked padding, where NaN would not stay masked.
            index = torch.tensor(blocks, device=self.tensors[0].device)
            for tensor in self.tensors:
                tensor.index_fill_(0, index, 0)
            sequence.suspect = False
        self.pool.release(blocks)
