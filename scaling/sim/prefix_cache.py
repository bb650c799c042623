"""Which blocks of which prompts a simulated replica still has."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PrefixCache:
    """Blocks in the order of their last use; the least recently used one goes first.

    Args:
        max_blocks: Room; 0 keeps nothing.
    """

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        """Blocks that are there."""
        return len(self._blocks)

    def match(self, blocks: Sequence[int]) -> int:
        """How many leading blocks are there; changes nothing."""
        held = self._blocks
        count = 0
        for block in blocks:
            if block not in held:
                break
            count += 1
        return count

    def use(self, blocks: Sequence[int]) -> None:
        """Adds blocks, or makes them the most recently used; the first of a prompt outlives the last."""
        held = self._blocks
        for block in reversed(blocks):
            held[block] = None
            held.move_to_end(block)
        while len(held) > self._max_blocks:
            held.popitem(last=False)

    def clear(self) -> None:
        """Forgets all."""
        self._blocks.clear()
