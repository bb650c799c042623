"""Lets sequences of one step that begin alike compute their common blocks once: the choices of a request, mostly.

A layer writes the keys and values of all rows before any row attends, so a sequence may read blocks that another one of
the same step writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.kv_cache import KvCache


@dataclass(frozen=True, slots=True)
class SharedSpan:
    """Blocks of a sequence's table that stand for another's until the step has succeeded.

    Attributes:
        sequence: Who does not compute them.
        first: Their place in its table.
        num_computed: Its tokens that were computed before.
        own: The blocks that it had reserved.
        others: The blocks that the other sequence writes.
        num_tokens: How many tokens they hold.
        num_restarts: The sequence's, when the step began.
    """

    sequence: CachedTokens
    first: int
    num_computed: int
    own: tuple[int, ...]
    others: tuple[int, ...]
    num_tokens: int
    num_restarts: int

    def apply(self, cache: KvCache) -> None:
        """Puts the other's blocks into the table, and what they will hold counts as computed. Both blocks are held."""
        cache.pool.share(self.others)
        self._put(self.others)
        self.sequence.num_computed = self.num_computed + self.num_tokens

    def undo(self, cache: KvCache) -> None:
        """Makes the sequence what it was: the step has failed and will be repeated with other company."""
        if self.sequence.num_restarts != self.num_restarts:  # it has given its table away meanwhile
            cache.pool.release(self.own)
            return
        cache.pool.release(self.others)
        self._put(self.own)
        self.sequence.num_computed = self.num_computed

    def keep(self, cache: KvCache) -> None:
        """Gives the sequence's own blocks back."""
        cache.pool.release(self.own)
        cache.prefix.num_hit_tokens += self.num_tokens
        is_there = self.sequence.num_restarts == self.num_restarts
        if is_there and self.sequence.num_cached == self.num_computed:  # it found all it has, and this, too
            self.sequence.num_cached = self.num_computed + self.num_tokens

    def _put(self, blocks: tuple[int, ...]) -> None:
        self.sequence.block_table[self.first : self.first + len(blocks)] = blocks


def share_in_step(sequences: Sequence[CachedTokens], units: list[int], cache: KvCache) -> list[SharedSpan]:
    """Finds what sequences of one step would compute twice, and takes it from the later ones' ``units``.

    Each keeps at least one token to compute.
    """
    block_size = cache.block_size
    if sum(n > block_size for n in units) < 2:
        return []
    spans: list[SharedSpan] = []
    written: dict[bytes, int] = {}  # the block in which each content will be
    for i, sequence in enumerate(sequences):
        if sequence.salt is None:
            continue
        begin, end = sequence.num_begun, sequence.num_begun + units[i]
        hashes = sequence.block_hashes[: end // block_size]
        first = -(-begin // block_size)
        others: list[int] = []
        if begin % block_size == 0 and not sequence.num_in_flight:
            for content in hashes[first : (end - 1) // block_size]:
                if content not in written:
                    break
                others.append(written[content])
        if others:
            own = tuple(sequence.block_table[first : first + len(others)].tolist())
            span = SharedSpan(
                sequence, first, begin, own, tuple(others), len(others) * block_size, sequence.num_restarts
            )
            span.apply(cache)
            units[i] -= span.num_tokens
            spans.append(span)
        for index in range(first + len(others), len(hashes)):
            written.setdefault(hashes[index], int(sequence.block_table[index]))
    return spans
