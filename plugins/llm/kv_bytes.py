"""A cache's blocks as bytes: ``[blocks, layers, key and value, heads, tokens, dim]`` in the cache's type, without gaps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sixfold.plugins.llm.tensors import index_tensor


class KvBytes:
    """Copies blocks out of cache tensors and into them. Used on the device thread.

    Args:
        tensors: A cache's, one a layer, [blocks, 2, heads, tokens, dim].
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._layer_bytes = [tensor[0].nbytes for tensor in tensors]
        self.block_bytes = sum(self._layer_bytes)

    def read(self, block_ids: Sequence[int]) -> Tensor:
        """A copy of the blocks on the host, [blocks, block_bytes] uint8."""
        out = torch.empty((len(block_ids), self.block_bytes), dtype=torch.uint8)
        for tensor, columns in self._columns(out):
            index = index_tensor(block_ids, tensor.device)
            columns.copy_(tensor.index_select(0, index).flatten(1).view(torch.uint8))
        return out

    def write(self, block_ids: Sequence[int], data: Tensor) -> bool:
        """Fills the blocks with what `read` gave, unless a value is not finite; says whether it did."""
        # Both ends are NaN if a value is; twenty times as fast as to ask each value whether it is finite.
        ends = torch.stack(torch.aminmax(data.view(self._tensors[0].dtype)))
        if not bool(torch.isfinite(ends).all()):
            return False
        self.scatter(block_ids, data)
        return True

    def gather(self, block_ids: Sequence[int]) -> Tensor:
        """A copy of the blocks where the cache is, [blocks, block_bytes] uint8."""
        parts = (
            t.index_select(0, index_tensor(block_ids, t.device)).flatten(1).view(torch.uint8) for t in self._tensors
        )
        return torch.cat(tuple(parts), dim=1)

    def scatter(self, block_ids: Sequence[int], data: Tensor) -> None:
        """Fills the blocks with what `read` or `gather` gave, whose values are known to be finite."""
        for tensor, columns in self._columns(data):
            values = columns.contiguous().view(tensor.dtype).view(-1, *tensor.shape[1:])
            tensor.index_copy_(0, index_tensor(block_ids, tensor.device), values.to(tensor.device))

    def _columns(self, data: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        begin = 0
        for tensor, size in zip(self._tensors, self._layer_bytes, strict=True):
            yield tensor, data[:, begin : begin + size]
            begin += size
