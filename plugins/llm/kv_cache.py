"""The key/value cache: its tensors, and the blocks that sequences hold in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sixfold.plugins.llm.block_pool import BlockPool
from sixfold.plugins.llm.cache_policy import CacheScheme
from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.host_copy import HostCopy
from sixfold.plugins.llm.host_tier import NO_TIER, HostTier
from sixfold.plugins.llm.kv_layer import KvLayer, make_layer, run_bytes
from sixfold.plugins.llm.prefix_cache import PrefixCache
from sixfold.plugins.llm.swap_cost import SwapCost
from sixfold.plugins.llm.tensors import bool_list, index_tensor

# Drafts take new blocks only while more than one in so many is free.
_DRAFT_RESERVE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """What one layer keeps per token."""

    num_kv_heads: int
    head_dim: int

    def block_bytes(self, block_size: int, dtype: torch.dtype, scheme: CacheScheme | None = None) -> int:
        """Bytes of the keys and values of so many tokens."""
        plain = block_size * self.head_dim * dtype.itemsize
        return 2 * self.num_kv_heads * (plain if scheme is None else run_bytes(block_size, self.head_dim))


class FilledBlocks:
    """Blocks that a step fills, and whether what it wrote is finite.

    Args:
        ranges: Of each sequence of the step: its first and behind its last of these blocks.
        is_finite: Of all, in order; None if there are none.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]], is_finite: HostCopy | None) -> None:
        self._ranges = ranges
        self._is_finite = is_finite

    def wait(self) -> Sequence[tuple[int, int]]:
        """Of each sequence: the first of these blocks, and how many from there on may be found by others; () if none is."""
        if self._is_finite is None:
            return ()
        flags = bool_list(self._is_finite.wait())
        found: list[tuple[int, int]] = []
        place = 0
        for first, last in self._ranges:
            own = flags[place : place + last - first]
            place += last - first
            found.append((first, [*own, False].index(False)))
        return found


class KvCache:
    """Cache tensors of all layers under one table of blocks. Owned by the device thread.

    Args:
        layers: One shape per layer, the model's first.
        num_blocks: Blocks per layer, the padding block included.
        block_size: Tokens per block.
        dtype: Of keys and values, as attention takes them.
        device: Where the tensors live.
        scheme: Keeps them in one byte a number; None keeps them in ``dtype``.
        num_guessing_layers: How many of the layers, the last ones, are those of a head that guesses for the model. They are
            filled after the model's own, and what is in them changes no answer.
    """

    def __init__(
        self,
        layers: tuple[LayerShape, ...],
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        scheme: CacheScheme | None = None,
        num_guessing_layers: int = 0,
    ) -> None:
        self.dtype = dtype
        self.scheme: CacheScheme | None = scheme
        self.num_model_layers = len(layers) - num_guessing_layers
        self.block_size = block_size
        self.pool = BlockPool(num_blocks, self._forget)
        self.pool.before_handing_out = self._clear
        self._unclean: list[int] = []
        self.prefix = PrefixCache(self.pool, block_size)
        self.tier: HostTier | None = None
        # Asked when fewer than so many blocks are free, before a sequence is told that there is no room.
        self.make_room: Callable[[int], None] = lambda _num_blocks: None
        self.layers: tuple[KvLayer, ...] = tuple(
            make_layer(
                num_blocks,
                num_kv_heads=shape.num_kv_heads,
                block_size=block_size,
                head_dim=shape.head_dim,
                dtype=dtype,
                scheme=scheme,
                device=device,
            )
            for shape in layers
        )
        self.tensors: tuple[Tensor, ...] = tuple(layer.tensor for layer in self.layers)

    @property
    def num_tokens(self) -> int:
        """Tokens that fit in all."""
        return self.pool.num_usable * self.block_size

    @property
    def num_bytes(self) -> int:
        """Size of the tensors."""
        return sum(t.nbytes for t in self.tensors)

    def stats(self) -> Mapping[str, float]:
        """See the metrics of the family."""
        return {
            "kv_cache_usage_perc": self.pool.num_used / self.pool.num_usable,
            "kv_blocks_used": self.pool.num_used,
            "kv_blocks_total": self.pool.num_usable,
            "prefix_cache_queries_total": self.prefix.num_queried_tokens,
            "prefix_cache_hits_total": self.prefix.num_hit_tokens,
            **(NO_TIER if self.tier is None else self.tier.stats()),
        }

    def reserve(self, sequence: CachedTokens, num_tokens: int) -> int:
        """Takes blocks until ``num_tokens`` more can be computed, or none is left; returns how many can be.

        A sequence that starts begins behind the blocks of its prefix that are found. One that gets no room takes nothing.
        """
        starts = sequence.num_blocks == 0
        if starts:
            self.prefix.attach(sequence)
            self._bring_back(sequence)
        # Drafts are a bet: they may use the room that is left, not the last that others wait for.
        num_known = min(num_tokens, sequence.num_uncomputed)
        self._take(sequence, num_known, is_needed=True)
        if num_tokens > num_known and self.pool.num_free > self.pool.num_usable // _DRAFT_RESERVE:
            self._take(sequence, num_tokens)
        granted = min(num_tokens, sequence.num_blocks * self.block_size - sequence.num_begun)
        if starts and granted < 1:
            self.pool.release(sequence.take_blocks())
        elif starts:
            self.prefix.count(sequence)
        return granted

    def keep_on_host(self, num_bytes: int) -> HostTier:
        """Keeps in host memory what there is no room for, where that is cheaper than to compute it again.

        Called once, before any sequence.
        """
        block_bytes = self.num_bytes // self.pool.num_blocks
        cost = SwapCost(block_tokens=self.block_size)
        tier = HostTier(self.layers, num_blocks=max(1, num_bytes // block_bytes), cost=cost, on_lost=self._forget)
        self.prefix.tier = self.tier = tier
        self.pool.before_reuse = tier.keep
        return tier

    def _bring_back(self, sequence: CachedTokens) -> None:
        """Extends the found head of a sequence that starts by what the host keeps of it, as far as there is room."""
        if self.tier is None:
            return
        contents = self.prefix.kept_behind(sequence, sequence.num_blocks)
        contents = contents[: max(0, self.pool.num_free - 1)]  # one more block, at least, is for what is computed
        if contents:
            self.tier.hold(contents)  # taking blocks sends others there
            blocks = self.pool.allocate(len(contents))
            self.tier.restore(contents, blocks)
            self.tier.hold(())
            self.prefix.bring_back(sequence, blocks)

    def publish(self, sequence: CachedTokens) -> None:
        """Lets others find the blocks of a sequence that are full, as far as they are finite; waits for what it computes."""
        sequence.num_checked = sequence.num_published
        for first, count in self.check([sequence], [sequence.num_computed]).wait():
            self.publish_checked(sequence, first, count)

    def publish_checked(self, sequence: CachedTokens, first: int, count: int) -> None:
        """Lets others find blocks that were checked; nothing where one before them was not finite."""
        count = min(count, sequence.num_computed // self.block_size - first)  # wrong drafts have filled nothing
        if count > 0 and sequence.num_published == first:
            self.prefix.publish(sequence, count)

    def check(self, sequences: Sequence[CachedTokens], ends: Sequence[int]) -> FilledBlocks:
        """Looks at the blocks that a step fills, without waiting for it; called when it has begun.

        A token that is NaN in a layer is so in all that follow, so the model's last layer tells of all.

        Args:
            sequences: Of the step.
            ends: Tokens of each that will be computed after it.
        """
        ranges: list[tuple[int, int]] = []
        blocks: list[int] = []
        for sequence, end in zip(sequences, ends, strict=True):
            first, last = max(sequence.num_checked, sequence.num_published), end // self.block_size
            if sequence.salt is None or last <= first:
                ranges.append((0, 0))
                continue
            blocks += sequence.block_table[first:last].tolist()
            ranges.append((first, last))
            sequence.num_checked = last
        if not blocks:
            return FilledBlocks((), None)
        last_layer = self.layers[self.num_model_layers - 1]
        filled = last_layer.tensor[index_tensor(blocks, last_layer.tensor.device)]
        return FilledBlocks(ranges, HostCopy(last_layer.finite(filled)))

    def free(self, sequence: CachedTokens) -> None:
        """Gives all of the sequence's blocks back; it can start over."""
        blocks = sequence.take_blocks()
        if sequence.suspect:
            # What is left in a block is read again as masked padding, where NaN would not stay masked. Others that hold
            # a block will prove it to be finite or clear it themselves; what is published is proved.
            self._unclean += [b for b in blocks if self.pool.references(b) == 1 and not self.pool.is_published(b)]
            sequence.suspect = False
        self.pool.release(blocks)

    def erase(self, sequence: CachedTokens, begin: int, end: int) -> None:
        """Zeroes what the sequence's own blocks hold of the positions ``begin`` to ``end``."""
        for position in range(begin, end):
            block = int(sequence.block_table[position // self.block_size])
            for layer in self.layers:
                layer.erase(block, position % self.block_size)

    def _take(self, sequence: CachedTokens, num_tokens: int, *, is_needed: bool = False) -> None:
        missing = -(-(sequence.num_begun + num_tokens) // self.block_size) - sequence.num_blocks
        if missing > 0:
            if is_needed and missing > self.pool.num_free:
                self.make_room(missing)
            sequence.add_blocks(self.pool.allocate(missing))

    def _clear(self) -> None:
        """Zeroes what was left unclean, all at once, before a block is handed out; after what steps in flight write."""
        blocks, self._unclean = self._unclean, []
        if blocks:
            index = index_tensor(blocks, self.tensors[0].device)
            for tensor in self.tensors:
                tensor.index_fill_(0, index, 0)

    def _forget(self, content: bytes) -> None:
        self.prefix.forgotten(content)
