"""Guesses what replicas hold from what was sent to them: for any model, without a word from the replica."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from sixfold.scaling.route.cost import cheapest
from sixfold.scaling.route.policy import Candidate, Choice, RequestShape

BLOCK_BYTES = 128
"""About 32 tokens of English, two blocks of most caches: what is missed at the end of a prompt costs little to compute."""
MAX_BLOCKS = 2048
"""Of one prompt; what follows 256 KiB is not looked at."""


def hash_blocks(parts: Iterable[bytes], *, root: bytes = b"") -> tuple[int, ...]:
    """Chained hashes of the whole blocks of a prompt's text.

    Args:
        parts: The text in order; where it is cut does not matter.
        root: What must be the same beside the text, such as the model and the adapter.

    Returns:
        64 bits a block; equal hashes at one place mean equal text up to there.
    """
    text = b"".join(parts)[: BLOCK_BYTES * MAX_BLOCKS]
    hashes: list[int] = []
    before = hashlib.blake2b(root, digest_size=8).digest()
    for start in range(0, len(text) - BLOCK_BYTES + 1, BLOCK_BYTES):
        before = hashlib.blake2b(before + text[start : start + BLOCK_BYTES], digest_size=8).digest()
        hashes.append(int.from_bytes(before, "big"))
    return tuple(hashes)


class _Held:
    """The blocks that one replica was sent, the longest unused first."""

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def num_matched(self, blocks: Sequence[int]) -> int:
        for place, block in enumerate(blocks):
            if block not in self._blocks:
                return place
        return len(blocks)

    def add(self, blocks: Sequence[int]) -> None:
        # From the last to the first: the head of a prompt is the part that others share, so it must be the youngest.
        for block in reversed(blocks):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)


class PrefixAffinity:
    """Prefers the replica that was sent the longest beginning of this prompt, as far as its queue is worth it.

    Args:
        max_blocks: Blocks that are remembered of each replica; about what its cache holds.
    """

    def __init__(self, max_blocks: int = 100_000) -> None:
        self._max_blocks = max_blocks
        self._held: dict[str, _Held] = {}

    def choose(self, request: RequestShape, candidates: Sequence[Candidate], now_s: float) -> Choice:
        """See `Policy.choose`."""
        held = [self._held.get(candidate.replica_id) for candidate in candidates]
        num_blocks = max(1, len(request.blocks))
        cached = [0.0 if each is None else each.num_matched(request.blocks) / num_blocks for each in held]
        return cheapest(request, candidates, cached, [0 if each is None else len(each) for each in held])

    def routed(self, request: RequestShape, replica_id: str, now_s: float) -> None:
        """See `Policy.routed`."""
        if request.blocks:
            held = self._held.get(replica_id)
            if held is None:
                held = self._held[replica_id] = _Held(self._max_blocks)
            held.add(request.blocks)

    def computed(self, request: RequestShape, replica_id: str) -> None:
        """See `Policy.computed`: it was taken to be held since it was sent."""

    def forget(self, replica_id: str) -> None:
        """See `Policy.forget`."""
        self._held.pop(replica_id, None)
