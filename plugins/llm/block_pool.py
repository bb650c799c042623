"""The bookkeeping of cache blocks: who holds which, which is free, and what a block's content is known as."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

PADDING_BLOCK = 0
"""Never handed out and always zero: shorter rows of a batch are padded with it."""


def block_hash(parent: bytes, token_ids: Sequence[int], salt: bytes = b"") -> bytes:
    """Names a full block's content by its tokens and all that came before; equal in every process.

    Args:
        parent: Hash of the preceding block of the same sequence, b"" for the first.
        token_ids: The block's tokens.
        salt: What else the content depends on (adapter, tenant).
    """
    digest = hashlib.blake2b(parent, digest_size=16, salt=hashlib.blake2b(salt, digest_size=16).digest())
    digest.update(array("q", token_ids).tobytes())
    return digest.digest()


class BlockPool:
    """Counts references to cache blocks. Owned by the device thread.

    Invariants: a block is in the free list exactly while nobody references it. The free list begins with the blocks
    without findable content; the others follow in order of release, so the content that was unused longest is lost
    first. Where every holder of a block holds all blocks before it in the same chain, a block's content is findable only
    as long as that of all before it: a tail is lost before its head.

    Args:
        num_blocks: Blocks of the cache, the padding block included.
        on_forget: Told the content of each block that stops being findable.
    """

    def __init__(self, num_blocks: int, on_forget: Callable[[bytes], None] = lambda _content: None) -> None:
        if num_blocks < 2:
            raise ValueError(f"A pool needs the padding block and at least one more, not {num_blocks}.")
        self.num_blocks = num_blocks
        self._on_forget = on_forget
        # Told the blocks that are about to be handed out and the content that will be lost with each, oldest first.
        self.before_reuse: Callable[[Sequence[tuple[int, bytes]]], None] = lambda _blocks: None
        self.before_handing_out: Callable[[], None] = lambda: None
        self._references = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(PADDING_BLOCK + 1, num_blocks))
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_usable(self) -> int:
        """Blocks that can be handed out in all."""
        return self.num_blocks - 1

    @property
    def num_free(self) -> int:
        """Blocks that nobody references."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks with at least one reference."""
        return self.num_usable - len(self._free)

    def references(self, block_id: int) -> int:
        """How many holders the block has."""
        return self._references[block_id]

    def allocate(self, max_count: int) -> list[int]:
        """Hands out up to ``max_count`` blocks with one reference each, longest unused first; forgets their content."""
        self.before_handing_out()
        blocks = [self._free.popitem(last=False)[0] for _ in range(min(max_count, len(self._free)))]
        lost = [(block_id, self._hash_of[block_id]) for block_id in blocks if block_id in self._hash_of]
        if lost:
            self.before_reuse(lost)
        for block_id in blocks:
            self._forget(block_id)
            self._references[block_id] = 1
        return blocks

    def share(self, block_ids: Iterable[int]) -> None:
        """Adds a reference to each block: a second sequence with the same prefix holds them too."""
        for block_id in block_ids:
            if block_id == PADDING_BLOCK:
                raise ValueError("The padding block can't be held.")
            if self._references[block_id] == 0:
                del self._free[block_id]
            self._references[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """Takes a reference from each block of a sequence, given in the sequence's order.

        Blocks are freed in reverse: the tail of a prefix is the part least likely to be shared, so it is reused first. A
        block whose content nobody can find goes before all that are of use yet.
        """
        for block_id in reversed(block_ids):
            if self._references[block_id] == 0:
                raise ValueError(f"Block {block_id} is released more often than it was taken.")
            self._references[block_id] -= 1
            if self._references[block_id] == 0:
                self._free[block_id] = None
                if block_id not in self._hash_of:
                    self._free.move_to_end(block_id, last=False)

    def publish(self, block_id: int, content: bytes) -> int:
        """Makes a held block's final content findable; the first block published for a content stays the one found.

        Returns:
            The block that is found: hold that one instead, lest its content is lost while its followers are held.
        """
        if self._references[block_id] == 0:
            raise ValueError(f"Block {block_id} is free; only a held block has content to publish.")
        if content not in self._block_of and block_id not in self._hash_of:
            self._block_of[content] = block_id
            self._hash_of[block_id] = content
        return self._block_of.get(content, block_id)

    def is_published(self, block_id: int) -> bool:
        """Whether the block's content can be found."""
        return block_id in self._hash_of

    def find(self, content: bytes) -> int | None:
        """The block of this content, held or free but not reused yet. Hold it with `share` before anything else."""
        return self._block_of.get(content)

    def _forget(self, block_id: int) -> None:
        content = self._hash_of.pop(block_id, None)
        if content is not None:
            del self._block_of[content]
            self._on_forget(content)
