"""Brings another process's blocks into the cache, where the next request with their tokens finds them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sixfold.core.runtime.events import made_beside
from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.kv_bytes import KvBytes
from sixfold.plugins.llm.kv_cache import KvCache
from sixfold.plugins.llm.kv_handle import DamagedBlock, KvTransferError
from sixfold.plugins.llm.lora_adapter import Adapter


class KvImport:
    """One transfer's hold on the cache: a sequence whose tokens are read instead of computed. All but `bring` is for the device
    thread.

    What was written can be found at once, and stays if the rest never comes. After `end` nobody holds it, so it can be
    lost again to others that need room; it is the last that would be.

    Args:
        cache: Where the blocks go.
        token_ids: What the blocks hold, full blocks only.
        salt: Who may find them; see `CachedTokens`.
        block_hashes: One for each of the blocks.
        adapter: Computed them; None for the model alone.
        running: Has this one from `begin` to `end`, so that the room can be had back.
    """

    def __init__(
        self,
        cache: KvCache,
        token_ids: Sequence[int],
        *,
        salt: bytes,
        block_hashes: Sequence[bytes],
        adapter: Adapter | None = None,
        running: set[KvImport],
    ) -> None:
        self._cache = cache
        self._running = running
        self._bytes = KvBytes(cache.layers)
        # One more than the blocks hold: a sequence never finds all its tokens, because it must compute the last.
        self._sequence = CachedTokens([*token_ids, 0], salt=salt, block_hashes=block_hashes, adapter=adapter)

    def begin(self) -> int:
        """Holds the blocks that are here already; returns how many."""
        self._running.add(self)
        self._cache.prefix.attach(self._sequence)
        return self._sequence.num_blocks

    def bring(self, data: Tensor) -> Tensor:
        """Brings blocks to the cache's device and looks at them, so that no step waits for either. [any thread]

        Args:
            data: [blocks, block_bytes] uint8 on the host, proved to be what was sent.

        Raises:
            DamagedBlock: They hold what is no number.
            KvTransferError: The device has no memory for them.
        """

        def copy() -> Tensor:
            blocks = data.to(self._bytes.device)
            if not self._bytes.is_finite(blocks):
                raise DamagedBlock("The blocks that came hold values that are not finite.")
            return blocks

        try:
            return made_beside(self._bytes.device, copy)
        except torch.OutOfMemoryError as error:  # to compute the prompt takes less, and is what the caller does then
            raise KvTransferError("The device has no memory for the blocks that came.") from error

    def write(self, blocks: Tensor) -> int:
        """Adds the blocks that follow; returns for how many of them there was room.

        Args:
            blocks: Of `bring`.
        """
        if self not in self._running:
            return 0
        sequence, block_ids = self._sequence, self._cache.pool.allocate(len(blocks))
        if block_ids:
            self._bytes.scatter(block_ids, blocks[: len(block_ids)])
        sequence.add_blocks(block_ids)
        sequence.num_computed += len(block_ids) * self._cache.block_size
        self._cache.publish_checked(sequence, sequence.num_published, len(block_ids))
        return len(block_ids)

    def end(self) -> None:
        """Lets the blocks go; harmless if it was called before. Nothing is written any more."""
        self._running.discard(self)
        self._cache.free(self._sequence)
