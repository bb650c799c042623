"""A second place for cached blocks, in the host's memory: what the device has no room for comes back instead of being computed.

Only of use where the cache is on another device. Copies run in the device's own order, behind the step before and ahead of
the step after, so that nothing waits for them; the host never reads what it keeps.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import torch

from sixfold.core.decisions import DecisionLog
from sixfold.plugins.llm.block_pool import PADDING_BLOCK
from sixfold.plugins.llm.kv_bytes import KvBytes
from sixfold.plugins.llm.kv_layer import KvLayer
from sixfold.plugins.llm.swap_cost import SwapCost

_LOG = logging.getLogger(__name__)

_STAGING_BYTES = 64 << 20
"""Memory of the device through which blocks are copied."""

_MEASURED_BLOCKS = 64
"""Whose way there and back is timed."""

NO_TIER: Mapping[str, float] = MappingProxyType(
    {
        "kv_offload_blocks_used": 0,
        "kv_offload_blocks_total": 0,
        "kv_offload_restored_blocks_total": 0,
        "kv_offload_dropped_blocks_total": 0,
    }
)
"""Values of the metrics where nothing is kept."""


class HostTier:
    """Blocks by their content, the longest unused lost first. Owned by the device thread.

    A block that came back is kept here as well: when the device loses it again, nothing needs to be copied. While computing
    is cheaper than copying, nothing is kept at all: so the tier never has a tail without its head.

    Args:
        layers: Of the cache.
        num_blocks: Blocks that are kept.
        cost: Decides whether anything is.
        on_lost: Told each content that is kept no longer.
    """

    def __init__(
        self, layers: Sequence[KvLayer], *, num_blocks: int, cost: SwapCost, on_lost: Callable[[bytes], None]
    ) -> None:
        self.cost = cost
        self.decisions = DecisionLog()
        self._bytes = KvBytes(layers)
        self._device = layers[0].tensor.device
        self._on_lost = on_lost
        block_bytes = self._bytes.block_bytes
        # Pinned: only such memory is copied without the host waiting for it.
        self._memory = torch.empty((num_blocks, block_bytes), dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        self._slot_of: OrderedDict[bytes, int] = OrderedDict()
        self._free = list(range(num_blocks))
        self._held: frozenset[bytes] = frozenset()
        self._staging_blocks = max(1, _STAGING_BYTES // block_bytes)
        self.num_restored_blocks = 0
        self.num_dropped_blocks = 0

    def __contains__(self, content: bytes) -> bool:
        return content in self._slot_of

    @property
    def num_blocks(self) -> int:
        """Blocks that can be kept."""
        return len(self._memory)

    @property
    def num_kept(self) -> int:
        """Blocks that are kept."""
        return len(self._slot_of)

    def stats(self) -> Mapping[str, float]:
        """Values of the family's metrics."""
        return {
            "kv_offload_blocks_used": self.num_kept,
            "kv_offload_blocks_total": self.num_blocks,
            "kv_offload_restored_blocks_total": self.num_restored_blocks,
            "kv_offload_dropped_blocks_total": self.num_dropped_blocks,
        }

    def measure(self) -> None:
        """Times a block's way to the host and back, before anything is kept: on the padding block, which stays as it is."""
        count = min(self._staging_blocks, len(self._memory), _MEASURED_BLOCKS)
        blocks = [PADDING_BLOCK] * count
        for _warm_up_first in range(2):
            self._synchronize()
            began_s = time.perf_counter()
            self._copy_out(blocks, range(count))
            self._copy_in(blocks, range(count))
            self._synchronize()
            self.cost.copy_s = (time.perf_counter() - began_s) / count

    def observe_step(self, units: Sequence[int], seconds: float) -> None:
        """A step of so many tokens for each sequence took so long; if computing is cheaper now, what is kept is of no use."""
        if not self.cost.observe_step(units, seconds):
            return
        _LOG.debug("%s", self.cost)
        ways = ("recompute", "copy") if self.cost.pays else ("copy", "recompute")
        self.decisions.changed(
            "host_cache", *ways, str(self.cost), objective="least time until a cached prompt is there again"
        )
        if not self.cost.pays:
            while self._slot_of:
                content, slot = self._slot_of.popitem(last=False)
                self._free.append(slot)
                self._on_lost(content)

    def hold(self, contents: Iterable[bytes]) -> None:
        """Loses none of these until the next `hold`: they are about to come back."""
        self._held = frozenset(contents)

    def keep(self, blocks: Sequence[tuple[int, bytes]]) -> None:
        """Copies blocks before the device uses them for something else.

        Args:
            blocks: With their contents, the least useful first: where not all find room, the last do.
        """
        if not self.cost.pays:
            self.num_dropped_blocks += len(blocks)
            return
        copied: list[tuple[int, bytes]] = []
        for block_id, content in blocks:
            if content in self._slot_of:
                self._slot_of.move_to_end(content)
                continue
            slot = self._take_slot()
            if slot is not None:
                self._slot_of[content] = slot
                copied.append((block_id, content))
        # A later block of this very call may have taken an earlier one's place.
        copied = [(block_id, content) for block_id, content in copied if content in self._slot_of]
        for begin in range(0, len(copied), self._staging_blocks):
            part = copied[begin : begin + self._staging_blocks]
            self._copy_out([block_id for block_id, _ in part], [self._slot_of[content] for _, content in part])

    def restore(self, contents: Sequence[bytes], block_ids: Sequence[int]) -> None:
        """Fills blocks of the device with contents that are kept; they count as used now."""
        for begin in range(0, len(contents), self._staging_blocks):
            part = contents[begin : begin + self._staging_blocks]
            self._copy_in(block_ids[begin : begin + len(part)], [self._slot_of[content] for content in part])
        for content in reversed(contents):  # a tail is lost before its head
            self._slot_of.move_to_end(content)
        self.num_restored_blocks += len(contents)

    def _copy_out(self, block_ids: Sequence[int], slots: Sequence[int]) -> None:
        staging = self._bytes.gather(block_ids)
        for row, slot in zip(staging, slots, strict=True):
            self._memory[slot].copy_(row, non_blocking=True)

    def _copy_in(self, block_ids: Sequence[int], slots: Sequence[int]) -> None:
        staging = torch.empty((len(slots), self._bytes.block_bytes), dtype=torch.uint8, device=self._device)
        for row, slot in zip(staging, slots, strict=True):
            row.copy_(self._memory[slot], non_blocking=True)
        self._bytes.scatter(block_ids, staging)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _take_slot(self) -> int | None:
        if self._free:
            return self._free.pop()
        oldest = next((content for content in self._slot_of if content not in self._held), None)
        if oldest is None:
            return None
        slot = self._slot_of.pop(oldest)
        self._on_lost(oldest)
        return slot
