"""Keeps blocks that the cache had to give away in the host's memory, so that whoever comes back need not compute them again.

A sequence that is preempted loses its blocks to others one by one, and so do prompts that nobody has used for long. What is
findable is copied out before it is overwritten, and copied back when a sequence starts with it: swapping is prefix reuse from
a second place. Whether a copy pays is measured: it must be faster than computing the block's tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sixfold.plugins.llm.kv_bytes import KvBytes
from sixfold.plugins.llm.tensors import index_tensor

_FORGET = 0.8  # a measurement: the memory is about five of them
# Smaller steps say little about what a prompt's token costs: reading the weights is most of their time.
_MIN_MEASURED_TOKENS = 32

_HOST = torch.device("cpu")


class KvHostTier:
    """Content of blocks by the hash that they are found by, longest unused first out. Owned by the device thread.

    Args:
        tensors: The cache's.
        block_size: Tokens per block.
        num_bytes: What it may hold.
        clock: ``time.perf_counter`` or a fake.
    """

    def __init__(
        self, tensors: Sequence[Tensor], *, block_size: int, num_bytes: int, clock: Callable[[], float]
    ) -> None:
        self._bytes = KvBytes(tensors)
        self._block_size = block_size
        self._clock = clock
        num_blocks = num_bytes // self._bytes.block_bytes
        self._rows = torch.empty(
            (num_blocks, self._bytes.block_bytes), dtype=torch.uint8, pin_memory=tensors[0].device.type == "cuda"
        )
        self._free = list(range(num_blocks))
        self._row_of: OrderedDict[bytes, int] = OrderedDict()
        self._copy_s: float | None = None  # a block
        self._compute_s: float | None = None  # a token
        self.num_saved = self.num_restored = 0

    @property
    def num_blocks(self) -> int:
        """Blocks that are kept now."""
        return len(self._row_of)

    @property
    def num_bytes(self) -> int:
        """Of the host's memory."""
        return self._rows.nbytes

    @property
    def pays(self) -> bool:
        """Whether copying a block is faster than computing its tokens, as far as is known."""
        if self._copy_s is None or self._compute_s is None:
            return True
        return self._copy_s < self._compute_s * self._block_size

    def observe_compute(self, num_tokens: int, seconds: float) -> None:
        """A step of the model took so long."""
        if num_tokens >= _MIN_MEASURED_TOKENS:
            self._compute_s = _blend(self._compute_s, seconds / num_tokens)

    def save(self, contents: Sequence[bytes], block_ids: Sequence[int]) -> None:
        """Keeps what is in these blocks, as far as it is new and there is room; called before they are overwritten."""
        if not self.pays:
            return
        new = [(content, block) for content, block in zip(contents, block_ids, strict=True) if not self._touch(content)]
        new = new[-len(self._free) - len(self._row_of) :] if len(self._rows) else []
        if not new:
            return
        began_s = self._clock()
        rows = [self._take_row() for _ in new]
        self._rows[index_tensor(rows, _HOST)] = self._bytes.read([block for _, block in new])
        self._row_of.update((content, row) for (content, _), row in zip(new, rows, strict=True))
        self._copy_s = _blend(self._copy_s, (self._clock() - began_s) / len(new))
        self.num_saved += len(new)

    def count(self, contents: Sequence[bytes]) -> int:
        """How many of these, from the first on, can be had and pay."""
        if not self.pays:
            return 0
        return next((n for n, content in enumerate(contents) if content not in self._row_of), len(contents))

    def read(self, contents: Sequence[bytes]) -> Tensor:
        """A copy of what `count` has found, for `restore`: making room for it may push it out."""
        for content in contents:
            self._touch(content)
        return self._rows[index_tensor([self._row_of[content] for content in contents], _HOST)]

    def restore(self, data: Tensor, block_ids: Sequence[int]) -> None:
        """Fills blocks with what `read` gave."""
        began_s = self._clock()
        is_written = self._bytes.write(block_ids, data[: len(block_ids)])
        assert is_written, "only what was proved to be finite is findable"
        self._copy_s = _blend(self._copy_s, (self._clock() - began_s) / len(block_ids))
        self.num_restored += len(block_ids)

    def _touch(self, content: bytes) -> bool:
        is_here = content in self._row_of
        if is_here:
            self._row_of.move_to_end(content)
        return is_here

    def _take_row(self) -> int:
        if self._free:
            return self._free.pop()
        _, row = self._row_of.popitem(last=False)
        return row


def _blend(mean: float | None, value: float) -> float:
    return value if mean is None else _FORGET * mean + (1 - _FORGET) * value
