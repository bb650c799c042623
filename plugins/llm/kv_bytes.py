"""A cache's blocks as bytes: for each block its layers' runs, as `kv_layer` lays them out, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sixfold.plugins.llm.kv_layer import KvLayer
from sixfold.plugins.llm.tensors import index_tensor


class KvBytes:
    """Copies blocks out of a cache and into it, on the cache's device, without waiting for it. Used on the device thread.

    Args:
        layers: A cache's.
    """

    def __init__(self, layers: Sequence[KvLayer]) -> None:
        self._layers = layers
        self._layer_bytes = [layer.tensor[0].nbytes for layer in layers]
        self.block_bytes = sum(self._layer_bytes)
        self.device = layers[0].tensor.device

    def gather(self, block_ids: Sequence[int]) -> Tensor:
        """A copy of the blocks where the cache is, [blocks, block_bytes] uint8."""
        index = index_tensor(block_ids, self.device)
        parts = (layer.tensor.index_select(0, index).flatten(1).view(torch.uint8) for layer in self._layers)
        return torch.cat(tuple(parts), dim=1)

    def scatter(self, block_ids: Sequence[int], data: Tensor) -> None:
        """Fills the blocks with what `gather` gave, whose values are known to be finite."""
        index = index_tensor(block_ids, self.device)
        for layer, columns in self._columns(data):
            layer.tensor.index_copy_(0, index, _typed(layer, columns.contiguous()).to(self.device))

    def is_finite(self, data: Tensor) -> bool:
        """Whether all values of what `gather` gave are; waits for the answer. [any thread]"""
        flags = [layer.finite(_typed(layer, columns)).all() for layer, columns in self._columns(data)]
        return bool(torch.stack(flags).all())

    def _columns(self, data: Tensor) -> Iterator[tuple[KvLayer, Tensor]]:
        begin = 0
        for layer, size in zip(self._layers, self._layer_bytes, strict=True):
            yield layer, data[:, begin : begin + size]
            begin += size


def _typed(layer: KvLayer, rows: Tensor) -> Tensor:
    """[blocks, bytes of a layer] as blocks of the layer."""
    return rows.view(layer.tensor.dtype).view(-1, *layer.tensor.shape[1:])
