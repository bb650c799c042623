"""What the hub needs of the place where its plans live: compare-and-set, leases, and writes that a fence guards.

The store is the judge. A leader may believe for a while that it still leads; what it writes then must fail here, because nobody
else can know. So each write of a leader names the entry that made it one, and the store refuses where that entry is gone.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from sixfold.core.errors import SixfoldError

ABSENT = 0
"""The version of a key that does not exist."""


class StoreError(SixfoldError):
    """A write or read did not succeed."""


class Conflict(StoreError):
    """The key has another version than expected: somebody else wrote."""


class Fenced(StoreError):
    """The entry that the write depends on is gone or was replaced: the writer leads no more."""


class StoreUnavailable(StoreError):
    """No answer in time. A write may or may not have happened: read before the next one."""


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A value and the version of the store that wrote it; versions only rise, over all keys."""

    value: bytes
    version: int


class Fence(msgspec.Struct, frozen=True, kw_only=True):
    """A write holds only while ``key`` has this version."""

    key: str
    version: int


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """Keys that were written under it vanish ``ttl_s`` seconds after it was last kept alive."""

    lease_id: int
    ttl_s: float


class Store(Protocol):
    """A small, strongly consistent key-value store. Every method may raise StoreUnavailable."""

    async def get(self, key: str) -> Stored | None:
        """The newest value; None if there is none."""
        ...

    async def put(
        self, key: str, value: bytes, *, expected: int, fence: Fence | None = None, lease: Lease | None = None
    ) -> int:
        """Writes if the key still has the version ``expected`` (`ABSENT`: does not exist) and the fence holds.

        Returns:
            The new version.

        Raises:
            Fenced: The fence does not hold; looked at before the version.
            Conflict: The key has another version.
        """
        ...

    async def grant(self, ttl_s: float) -> Lease:
        """A new lease. The store may give it a longer life than asked for."""
        ...

    async def keep_alive(self, lease: Lease) -> bool:
        """Starts the lease's life anew; False if it has ended."""
        ...

    async def revoke(self, lease: Lease) -> None:
        """Ends the lease; its keys vanish. Nothing happens if it has ended."""
        ...

    async def watch(self, key: str, *, after: int, timeout_s: float) -> Stored | None:
        """Waits for a value of the key newer than version ``after``; None if none came in time. Values in between are skipped."""
        ...

    async def close(self) -> None:
        """Gives connections back."""
        ...
