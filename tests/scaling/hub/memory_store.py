"""The store's contract in the fewest lines, for the simulation; tests hold it, SQLite and etcd to the same sentences."""

import asyncio
from collections.abc import Callable
from itertools import count

from sixfold.scaling.hub.store import ABSENT, Conflict, Fence, Fenced, Lease, Stored


class MemoryStore:
    """Plain methods hold the state; the coroutines of the `Store` protocol never wait, but for `watch`.

    Args:
        clock: By which leases end.
        fencing: False plants the bug that fences are not looked at.
    """

    def __init__(self, clock: Callable[[], float], *, fencing: bool = True) -> None:
        self._clock = clock
        self._fencing = fencing
        self._entries: dict[str, tuple[Stored, int | None]] = {}
        self._ends_s: dict[int, float] = {}
        self._versions = count(1)
        self._lease_ids = count(1)
        self.changed = asyncio.Event()

    def lose_all(self) -> None:
        """As when its disks are gone and it starts from nothing, versions included."""
        self._entries.clear()
        self._ends_s.clear()
        self._versions = count(1)

    def expire(self) -> None:
        for lease_id in [key for key, ends_s in self._ends_s.items() if ends_s <= self._clock()]:
            self._end(lease_id)

    def _end(self, lease_id: int) -> None:
        self._ends_s.pop(lease_id, None)
        self._entries = {key: entry for key, entry in self._entries.items() if entry[1] != lease_id}

    def _version(self, key: str) -> int:
        entry = self._entries.get(key)
        return ABSENT if entry is None else entry[0].version

    async def get(self, key: str) -> Stored | None:
        self.expire()
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    async def put(
        self, key: str, value: bytes, *, expected: int, fence: Fence | None = None, lease: Lease | None = None
    ) -> int:
        self.expire()
        if fence is not None and self._fencing and self._version(fence.key) != fence.version:
            raise Fenced(fence.key)
        if self._version(key) != expected:
            raise Conflict(key)
        if lease is not None and lease.lease_id not in self._ends_s:
            raise Conflict("the lease has ended")
        version = next(self._versions)
        self._entries[key] = (Stored(value=value, version=version), None if lease is None else lease.lease_id)
        self.changed.set()
        self.changed = asyncio.Event()
        return version

    async def grant(self, ttl_s: float) -> Lease:
        lease = Lease(lease_id=next(self._lease_ids), ttl_s=ttl_s)
        self._ends_s[lease.lease_id] = self._clock() + ttl_s
        return lease

    async def keep_alive(self, lease: Lease) -> bool:
        self.expire()
        if lease.lease_id not in self._ends_s:
            return False
        self._ends_s[lease.lease_id] = self._clock() + lease.ttl_s
        return True

    async def revoke(self, lease: Lease) -> None:
        self._end(lease.lease_id)

    async def watch(self, key: str, *, after: int, timeout_s: float) -> Stored | None:
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    changed, stored = self.changed, await self.get(key)
                    if stored is not None and stored.version > after:
                        return stored
                    await changed.wait()
        except TimeoutError:
            return None

    async def close(self) -> None:
        return None
