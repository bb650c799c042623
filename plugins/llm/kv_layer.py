"""One layer of the cache: how its blocks lie in memory, and how keys and values come into them and out again."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sixfold.plugins.llm.batch_layout import BatchLayout, DecodeGroup, PrefillChunk
from sixfold.plugins.llm.cache_policy import SCALE_BYTES, CacheScheme

# Of the largest value of a token and head. A token of less is all zeros: the inverse of its scale would be infinite.
_TOP = {"fp8": 448.0, "int8": 127.0}
LEAST_MAXIMUM = 1e-30
"""Below it, a token's values in one head are kept as zeros."""


class KvLayer(ABC):
    """The memory of one layer. Owned by the device thread.

    Attributes:
        tensor: [blocks, 2 (key, value), kv heads, ...]: a block is one run of bytes, and so is a head of it.
        num_kv_heads: Of the layer.
        block_size: Tokens of a block.
        head_dim: Numbers of a key.
        scheme: Of the numbers; None if they are as attention takes them.
    """

    def __init__(
        self, tensor: Tensor, *, num_kv_heads: int, block_size: int, head_dim: int, scheme: CacheScheme | None
    ) -> None:
        self.tensor = tensor
        self.num_kv_heads = num_kv_heads
        self.block_size = block_size
        self.head_dim = head_dim
        self.scheme: CacheScheme | None = scheme

    @abstractmethod
    def store(self, layout: BatchLayout, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the keys and values of a step, [kv heads, tokens, head dim]; returns them as `gather` will give them.

        What attends to its own step's keys takes the returned ones: so a token's result does not depend on whether its
        context came with it or was found.
        """

    @abstractmethod
    def gather(
        self, layout: BatchLayout, part: DecodeGroup | PrefillChunk, block_ids: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """[2 (key, value), sequences * kv heads, context, head dim] of the blocks, contiguous."""

    @abstractmethod
    def finite(self, blocks: Tensor) -> Tensor:
        """Which of some blocks, as `tensor` has them, hold numbers only, [blocks] bool."""

    @abstractmethod
    def erase(self, block: int, offset: int) -> None:
        """Zeroes one token."""


class PlainLayer(KvLayer):
    """Keys and values as attention takes them: [blocks, 2, kv heads, block size, head dim].

    Each head's tokens are one span, so that a gathered context is what a batched matrix product wants without another
    copy: 4 times faster than attending to a token-major context (bf16, CPU).
    """

    def __init__(self, tensor: Tensor) -> None:
        num_kv_heads, block_size, head_dim = tensor.shape[2:]
        super().__init__(tensor, num_kv_heads=num_kv_heads, block_size=block_size, head_dim=head_dim, scheme=None)

    def store(self, layout: BatchLayout, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """See `KvLayer`."""
        keys_at, values_at = layout.token_rows(num_kv_heads=self.num_kv_heads, block_size=self.block_size)
        tokens = self.tensor.view(-1, self.head_dim)
        tokens.index_copy_(0, keys_at, key.reshape(-1, self.head_dim))
        tokens.index_copy_(0, values_at, value.reshape(-1, self.head_dim))
        return key, value

    def gather(
        self, layout: BatchLayout, part: DecodeGroup | PrefillChunk, block_ids: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """See `KvLayer`; ``dtype`` is that of the cache."""
        rows = layout.block_rows(part, block_ids, num_kv_heads=self.num_kv_heads)
        spans = self.tensor.view(-1, self.block_size * self.head_dim).index_select(0, rows.reshape(-1))
        return spans.view(2, rows.shape[1], -1, self.head_dim)

    def finite(self, blocks: Tensor) -> Tensor:
        """See `KvLayer`."""
        # Both ends are NaN if a value is; twenty times as fast as to ask each value whether it is finite.
        return torch.isfinite(torch.stack(torch.aminmax(blocks.flatten(1), dim=1))).all(0)

    def erase(self, block: int, offset: int) -> None:
        """See `KvLayer`."""
        self.tensor[block, :, :, offset] = 0


class ByteLayer(KvLayer):
    """Keys and values of one byte a number: [blocks, 2, kv heads, run bytes] uint8.

    A run is what one head has of a block: the numbers of all its tokens, then a float32 for each token by which its
    numbers are multiplied. So numbers are read from aligned addresses, and a block stays one run of bytes.
    """

    def __init__(self, tensor: Tensor, scheme: CacheScheme, *, block_size: int, head_dim: int) -> None:
        super().__init__(tensor, num_kv_heads=tensor.shape[2], block_size=block_size, head_dim=head_dim, scheme=scheme)
        self.scales_at = scales_at(block_size, head_dim)
        self.numbers = self._numbers(tensor)
        self.scales = self._scales(tensor)

    def store(self, layout: BatchLayout, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """See `KvLayer`."""
        assert self.scheme is not None
        read: list[Tensor] = []
        for side, given in enumerate((key, value)):
            numbers, scales = quantize(given, self.scheme)
            self.numbers[layout.blocks, side, :, layout.offsets] = numbers.transpose(0, 1)
            self.scales[layout.blocks, side, :, layout.offsets] = scales.transpose(0, 1)
            read.append(dequantize(numbers, scales, self.scheme).to(given.dtype))
        return read[0], read[1]

    def gather(
        self, layout: BatchLayout, part: DecodeGroup | PrefillChunk, block_ids: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """See `KvLayer`."""
        assert self.scheme is not None
        rows = layout.block_rows(part, block_ids, num_kv_heads=self.num_kv_heads)
        runs = self.tensor.view(-1, self.tensor.shape[3]).index_select(0, rows.reshape(-1))
        values = dequantize(self._numbers(runs), self._scales(runs), self.scheme)
        return values.to(dtype).view(2, rows.shape[1], -1, self.head_dim)

    def finite(self, blocks: Tensor) -> Tensor:
        """See `KvLayer`; what is no number when it is written shows in its scale."""
        found = torch.isfinite(self._scales(blocks)).flatten(1).all(1)
        if self.scheme == "fp8":  # what another process sent may have its one pattern that is no number
            found &= ((self._numbers(blocks) & 0x7F) != 0x7F).flatten(1).all(1)
        return found

    def erase(self, block: int, offset: int) -> None:
        """See `KvLayer`."""
        self.numbers[block, :, :, offset] = 0
        self.scales[block, :, :, offset] = 0

    def _numbers(self, runs: Tensor) -> Tensor:
        numbers = runs[..., : self.block_size * self.head_dim]
        return numbers.view(*runs.shape[:-1], self.block_size, self.head_dim)

    def _scales(self, runs: Tensor) -> Tensor:
        return runs[..., self.scales_at :].view(torch.float32)


def scales_at(block_size: int, head_dim: int) -> int:
    """Where in a run its scales begin: behind the numbers, on an address for float32."""
    return -(-block_size * head_dim // SCALE_BYTES) * SCALE_BYTES


def run_bytes(block_size: int, head_dim: int) -> int:
    """Bytes that one head has of one block."""
    return scales_at(block_size, head_dim) + SCALE_BYTES * block_size


def quantize(values: Tensor, scheme: CacheScheme) -> tuple[Tensor, Tensor]:
    """Each row of the last dimension as bytes and their scale.

    Returns:
        uint8 of the same shape, and float32 without the last dimension, which is no number where the row has one that
        is none.
    """
    wide = values.float()
    largest = wide.abs().amax(-1)
    inverse = torch.where(largest > LEAST_MAXIMUM, _TOP[scheme] / largest, 0.0)
    scaled = torch.nan_to_num(wide * inverse.unsqueeze(-1))
    kept = scaled.to(torch.float8_e4m3fn) if scheme == "fp8" else scaled.round().to(torch.int8)
    return kept.view(torch.uint8), largest / _TOP[scheme]


def dequantize(numbers: Tensor, scales: Tensor, scheme: CacheScheme) -> Tensor:
    """What `quantize` kept, in float32."""
    kept = numbers.view(torch.float8_e4m3fn if scheme == "fp8" else torch.int8)
    return kept.float() * scales.unsqueeze(-1)


def as_read(values: Tensor, scheme: CacheScheme) -> Tensor:
    """What a cache of this scheme gives back of values."""
    return dequantize(*quantize(values, scheme), scheme).to(values.dtype)


def make_layer(
    num_blocks: int,
    *,
    num_kv_heads: int,
    block_size: int,
    head_dim: int,
    dtype: torch.dtype,
    scheme: CacheScheme | None,
    device: torch.device,
) -> KvLayer:
    """An empty layer."""
    # Zeros, not empty: masked positions are multiplied by 0, and 0 times NaN is NaN. On Linux the pages of a zeroed tensor
    # take memory only when they are first written.
    if scheme is None:
        return PlainLayer(torch.zeros((num_blocks, 2, num_kv_heads, block_size, head_dim), dtype=dtype, device=device))
    shape = (num_blocks, 2, num_kv_heads, run_bytes(block_size, head_dim))
    memory = torch.zeros(shape, dtype=torch.uint8, device=device)
    return ByteLayer(memory, scheme, block_size=block_size, head_dim=head_dim)
