"""Keeps the blocks of finished prompts for those who were given a handle, and never longer than promised."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from hmac import compare_digest

from torch import Tensor

from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.kv_bytes import KvBytes
from sixfold.plugins.llm.kv_cache import KvCache
from sixfold.plugins.llm.kv_handle import LeaseExpired

# Whoever collects handles and uses none must not take the cache from those who compute.
_MAX_HELD_SHARE = 0.5


@dataclass(slots=True, kw_only=True)
class Lease:
    """Blocks that are held for whoever has the secret. Only `KvExports` changes it.

    Attributes:
        lease_id: Its name.
        secret: Proves the right to read.
        block_ids: A whole head of a chain.
        chain: Hash of the last block.
        expires_s: When it ends, by the cache's owner's clock; while somebody reads, after that.
        num_readers: Transfers that run.
        is_taken: Whether a transfer was complete: the lease ends with the last reader.
    """

    lease_id: str
    secret: str
    block_ids: tuple[int, ...]
    chain: bytes
    expires_s: float
    num_readers: int = 0
    is_taken: bool = False


class KvExports:
    """The leases of one cache. Owned by the device thread.

    Invariant: each lease in the table holds one reference to each of its blocks, and no other reference is held here.
    A lease leaves the table when it was taken, or has expired, and nobody reads; or when the cache has no other room.

    Args:
        cache: Whose blocks are held.
        clock: ``time.monotonic`` or a fake.
        lease_s: How long blocks are held for a handle.
    """

    def __init__(self, cache: KvCache, *, clock: Callable[[], float], lease_s: float) -> None:
        self._cache = cache
        self._bytes = KvBytes(cache.layers)
        self._clock = clock
        self._lease_s = lease_s
        self.device = self._bytes.device
        self._leases: dict[str, Lease] = {}
        self.num_held_blocks = 0

    def hold(self, sequence: CachedTokens, num_tokens: int) -> Lease | None:
        """Holds the full, findable blocks of a sequence's first ``num_tokens`` beyond its own end.

        Returns:
            None if there is no such block, or if leases hold half of the cache already.
        """
        self.expire()
        count = min(sequence.num_published, num_tokens // self._cache.block_size)
        if not count or self.num_held_blocks + count > self._cache.pool.num_usable * _MAX_HELD_SHARE:
            return None
        lease = Lease(
            lease_id=secrets.token_hex(8),
            secret=secrets.token_hex(16),
            block_ids=tuple(sequence.block_table[:count].tolist()),
            chain=sequence.block_hashes[count - 1],
            expires_s=self._clock() + self._lease_s,
        )
        self._cache.pool.share(lease.block_ids)
        self._leases[lease.lease_id] = lease
        self.num_held_blocks += count
        return lease

    def open(self, lease_id: str, secret: str) -> Lease:
        """Begins a transfer; `close` must follow.

        Raises:
            LeaseExpired: There is no such lease, or the secret is wrong; which of both is not told.
        """
        self.expire()
        lease = self._leases.get(lease_id)
        if lease is None or not compare_digest(lease.secret.encode(), secret.encode()):
            raise LeaseExpired("The blocks are not kept any more: the lease has expired, or they were taken.")
        lease.num_readers += 1
        return lease

    def read(self, lease: Lease, first: int, count: int) -> Tensor:
        """Copies up to ``count`` blocks of an open lease, from its ``first``; [blocks, block_bytes] uint8 where the cache is.

        Raises:
            LeaseExpired: It was given up.
        """
        if not self.is_kept(lease):
            raise LeaseExpired("The blocks are not kept any more: their owner needed the room.")
        return self._bytes.gather(lease.block_ids[first : first + count])

    def is_kept(self, lease: Lease) -> bool:
        """Whether the lease's blocks are held yet."""
        return lease.lease_id in self._leases

    def close(self, lease: Lease, *, is_taken: bool) -> None:
        """Ends a transfer. One that failed may be tried again until the lease expires."""
        lease.num_readers -= 1
        lease.is_taken |= is_taken
        self.expire()

    def expire(self) -> None:
        """Lets go of what nobody can or will fetch."""
        now_s = self._clock()
        for lease in [*self._leases.values()]:
            if not lease.num_readers and (lease.is_taken or lease.expires_s <= now_s):
                self._drop(lease)

    def give_up(self, num_free: int) -> None:
        """Breaks leases, the oldest first, until so many blocks are free or none is left; also those that are read."""
        for lease in [*self._leases.values()]:
            if self._cache.pool.num_free >= num_free:
                return
            self._drop(lease)

    def _drop(self, lease: Lease) -> None:
        del self._leases[lease.lease_id]
        self.num_held_blocks -= len(lease.block_ids)
        self._cache.pool.release(lease.block_ids)
