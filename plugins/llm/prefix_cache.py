"""Finds the cache blocks of a prefix that was computed before, and makes computed blocks findable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sixfold.plugins.llm.block_pool import BlockPool
from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.prefix_sharing import extend_hashes


class BlockListener(Protocol):
    """Hears which content comes and goes. Called on the device thread."""

    def stored(
        self, hashes: Sequence[bytes], parent: bytes, token_ids: Sequence[int], adapter: str | None = None
    ) -> None:
        """Consecutive blocks of one chain can be found from now on.

        Args:
            hashes: Of the blocks.
            parent: Of the block before them; b"" for the first of a chain.
            token_ids: Of all of them.
            adapter: Name of the adapter that computed them.
        """
        ...

    def removed(self, content: bytes) -> None:
        """A block can't be found any more."""
        ...


class BlockTier(Protocol):
    """Keeps contents that the pool has lost. Called on the device thread."""

    def __contains__(self, content: bytes) -> bool:
        """Whether it has it."""
        ...


class PrefixCache:
    """Shares full blocks between sequences that begin alike. Owned by the device thread.

    Every sequence holds the chain of blocks of its prefix from the first on, and holds what is found rather than a copy:
    so the pool loses a chain from its end, and what is found is always a whole head of it.

    Args:
        pool: Keeps the blocks.
        block_size: Tokens per block.
    """

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self._pool = pool
        self._block_size = block_size
        self.listener: BlockListener | None = None
        self.tier: BlockTier | None = None
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0

    def num_found(self, sequence: CachedTokens) -> int:
        """Tokens that a sequence which holds nothing would find; changes nothing but its hashes."""
        num_found = len(self._find(sequence))
        return (num_found + len(self.kept_behind(sequence, num_found))) * self._block_size

    def attach(self, sequence: CachedTokens) -> None:
        """Lets a sequence that holds nothing begin behind the longest chain that is found."""
        blocks = self._find(sequence)
        self._pool.share(blocks)
        sequence.add_blocks(blocks)
        sequence.num_published = len(blocks)
        sequence.num_computed = len(blocks) * self._block_size

    def kept_behind(self, sequence: CachedTokens, num_blocks: int) -> list[bytes]:
        """The contents that follow the first ``num_blocks`` of a sequence and that the tier has."""
        kept: list[bytes] = []
        if self.tier is not None and sequence.salt is not None:
            self._extend_hashes(sequence)
            for content in sequence.block_hashes[num_blocks : self._num_sought(sequence)]:
                if content not in self.tier:
                    break
                kept.append(content)
        return kept

    def bring_back(self, sequence: CachedTokens, block_ids: list[int]) -> None:
        """Adds blocks to a sequence that starts, which the tier has filled with the contents that follow."""
        for block_id in block_ids:
            self._pool.publish(block_id, sequence.block_hashes[sequence.num_blocks])
            sequence.add_blocks([block_id])
        sequence.num_published = sequence.num_blocks
        sequence.num_computed = sequence.num_blocks * self._block_size

    def count(self, sequence: CachedTokens) -> None:
        """Counts a sequence that has started, and what it found."""
        if sequence.salt is None:
            return
        self.num_queried_tokens += len(sequence.token_ids)
        self.num_hit_tokens += sequence.num_computed
        if sequence.num_cached is None:
            sequence.num_cached = sequence.num_computed

    def publish(self, sequence: CachedTokens, count: int) -> None:
        """Makes the next ``count`` blocks behind the findable ones findable; they must be full and known to be finite."""
        first = sequence.num_published
        self._extend_hashes(sequence)
        stored: list[int] = []
        for index in range(first, first + count):
            own = int(sequence.block_table[index])
            was_published = self._pool.is_published(own)
            found = self._pool.publish(own, sequence.block_hashes[index])
            if found != own:
                self._pool.share((found,))
                self._pool.release((own,))
                sequence.block_table[index] = found
            elif not was_published and not (self.tier is not None and sequence.block_hashes[index] in self.tier):
                stored.append(index)  # it could not be found in either place
        sequence.num_published = first + count
        self._tell_stored(sequence, stored)

    def forgotten(self, content: bytes) -> None:
        """The pool has given a block to somebody else, or the tier has lost one."""
        is_kept = self.tier is not None and content in self.tier
        if self.listener is not None and not is_kept and self._pool.find(content) is None:
            self.listener.removed(content)

    def _tell_stored(self, sequence: CachedTokens, stored: Sequence[int]) -> None:
        """What is new is the end of a chain: what comes before it is findable, so it is one run."""
        if self.listener is None or not stored:
            return
        begin, end = stored[0], stored[-1] + 1
        self.listener.stored(
            sequence.block_hashes[begin:end],
            sequence.block_hashes[begin - 1] if begin else b"",
            sequence.token_ids[begin * self._block_size : end * self._block_size],
            None if sequence.adapter is None else sequence.adapter.name,
        )

    def _find(self, sequence: CachedTokens) -> list[int]:
        blocks: list[int] = []
        if sequence.salt is None:
            return blocks
        self._extend_hashes(sequence)
        for content in sequence.block_hashes[: self._num_sought(sequence)]:
            block = self._pool.find(content)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def _num_sought(self, sequence: CachedTokens) -> int:
        """Blocks that may be found instead of computed; the last token must be computed, its logits are what is wanted."""
        return (len(sequence.token_ids) - 1) // self._block_size

    def _extend_hashes(self, sequence: CachedTokens) -> None:
        extend_hashes(
            sequence.block_hashes,
            sequence.token_ids,
            block_size=self._block_size,
            salt=sequence.salt or b"",
            images=sequence.images,
        )
