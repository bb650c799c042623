"""A cache's blocks as bytes: for each block its layers' runs, as `kv_layer` lays them out, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sixfold.plugins.llm.kv_layer import KvLayer
from sixfold.plugins.llm.tensors import index_tensor


class KvBytes:
    """Copies blocks out of a cache and into it. Used on the device thread.

    Args:
        layers: A cache's.
    """

    def __init__(self, layers: Sequence[KvLayer]) -> None:
        self._layers = layers
        self._layer_bytes = [layer.tensor[0].nbytes for layer in layers]
        self.block_bytes = sum(self._layer_bytes)

    def read(self, block_ids: Sequence[int]) -> Tensor:
        """A copy of the blocks on the host, [blocks, block_bytes] uint8."""
        out = torch.empty((len(block_ids), self.block_bytes), dtype=torch.uint8)
        for layer, columns in self._columns(out):
            index = index_tensor(block_ids, layer.tensor.device)
            columns.copy_(layer.tensor.index_select(0, index).flatten(1).view(torch.uint8))
        return out

    def write(self, block_ids: Sequence[int], data: Tensor) -> bool:
        """Fills the blocks with what `read` gave, unless a value is not finite; says whether it did."""
        if not all(bool(layer.finite(_typed(layer, columns)).all()) for layer, columns in self._columns(data)):
            return False
        self.scatter(block_ids, data)
        return True

    def gather(self, block_ids: Sequence[int]) -> Tensor:
        """A copy of the blocks where the cache is, [blocks, block_bytes] uint8."""
        tensors = (layer.tensor for layer in self._layers)
        parts = (t.index_select(0, index_tensor(block_ids, t.device)).flatten(1).view(torch.uint8) for t in tensors)
        return torch.cat(tuple(parts), dim=1)

    def scatter(self, block_ids: Sequence[int], data: Tensor) -> None:
        """Fills the blocks with what `read` or `gather` gave, whose values are known to be finite."""
        for layer, columns in self._columns(data):
            tensor, values = layer.tensor, _typed(layer, columns.contiguous())
            tensor.index_copy_(0, index_tensor(block_ids, tensor.device), values.to(tensor.device))

    def _columns(self, data: Tensor) -> Iterator[tuple[KvLayer, Tensor]]:
        begin = 0
        for layer, size in zip(self._layers, self._layer_bytes, strict=True):
            yield layer, data[:, begin : begin + size]
            begin += size


def _typed(layer: KvLayer, rows: Tensor) -> Tensor:
    """[blocks, bytes of a layer] as blocks of the layer."""
    return rows.view(layer.tensor.dtype).view(-1, *layer.tensor.shape[1:])
