"""The store of a hub on one machine: a file that several hub processes may share."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from sixfold.core.errors import ConfigError
from sixfold.core.sqlite_thread import write_ahead
from sixfold.scaling.hub.store import ABSENT, Conflict, Fence, Fenced, Lease, Stored, StoreUnavailable

ResultT = TypeVar("ResultT")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS revision (version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS leases (lease_id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_s REAL NOT NULL, ends_s REAL NOT NULL);
CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value BLOB NOT NULL, version INTEGER NOT NULL, lease_id INTEGER);
INSERT INTO revision SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM revision);
"""

_POLL_S = 0.2
"""How often a watch looks; a hub that follows is not in a hurry."""

_BUSY_S = 5.0


class SqliteStore:
    """A `Store` in one SQLite file, in WAL mode; every operation is one transaction.

    Leases end by the machine's wall clock, the one clock that processes share over restarts. If it is set back, a dead leader is
    replaced later; if it jumps ahead, a living one is deposed. Neither lets two write: fences do not look at clocks.

    Args:
        path: The file; it and its folder are made when missing.
        clock: Seconds, the same for all processes that share the file.

    Raises:
        ConfigError: The file cannot be opened.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        # One thread: a connection of sqlite3 belongs to one, and a slow disk must not stop the event loop.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hub-store")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = self._thread.submit(_open, path).result()
        except (OSError, sqlite3.Error) as error:
            self._thread.shutdown()
            raise ConfigError(
                f"store: {path} cannot be opened: {error}. Name a file in a folder that can be written."
            ) from error

    async def get(self, key: str) -> Stored | None:
        """See `Store`."""
        return await self._run(lambda: self._read(key))

    async def put(
        self, key: str, value: bytes, *, expected: int, fence: Fence | None = None, lease: Lease | None = None
    ) -> int:
        """See `Store`."""

        def write() -> int:
            if fence is not None and self._version(fence.key) != fence.version:
                raise Fenced(f"{fence.key} has another owner")
            if self._version(key) != expected:
                raise Conflict(f"{key} was written by somebody else")
            if lease is not None and not self._one("SELECT 1 FROM leases WHERE lease_id = ?", lease.lease_id):
                raise Conflict("the lease has ended")
            version = self._next_version()
            self._db.execute(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)",
                (key, value, version, None if lease is None else lease.lease_id),
            )
            return version

        return await self._run(write)

    async def grant(self, ttl_s: float) -> Lease:
        """See `Store`."""

        def write() -> Lease:
            cursor = self._db.execute(
                "INSERT INTO leases (ttl_s, ends_s) VALUES (?, ?)", (ttl_s, self._clock() + ttl_s)
            )
            assert cursor.lastrowid is not None
            return Lease(lease_id=cursor.lastrowid, ttl_s=ttl_s)

        return await self._run(write)

    async def keep_alive(self, lease: Lease) -> bool:
        """See `Store`."""

        def write() -> bool:
            ends_s = self._clock() + lease.ttl_s
            return (
                self._db.execute("UPDATE leases SET ends_s = ? WHERE lease_id = ?", (ends_s, lease.lease_id)).rowcount
                == 1
            )

        return await self._run(write)

    async def revoke(self, lease: Lease) -> None:
        """See `Store`."""
        await self._run(lambda: self._end(lease.lease_id))

    async def watch(self, key: str, *, after: int, timeout_s: float) -> Stored | None:
        """See `Store`."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        while True:
            stored = await self.get(key)
            if stored is not None and stored.version > after:
                return stored
            left_s = until_s - loop.time()
            if left_s <= 0:
                return None
            await asyncio.sleep(min(_POLL_S, left_s))

    async def close(self) -> None:
        """See `Store`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._db.close)
        self._thread.shutdown(wait=False)

    async def _run(self, operation: Callable[[], ResultT]) -> ResultT:
        def in_transaction() -> ResultT:
            with self._transaction():
                for (lease_id,) in self._db.execute(
                    "SELECT lease_id FROM leases WHERE ends_s <= ?", (self._clock(),)
                ).fetchall():
                    self._end(lease_id)
            # A transaction of its own: what has ended stays ended, though the operation is refused.
            with self._transaction():
                return operation()

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, in_transaction)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"the store's file cannot be used: {error}") from error

    @contextmanager
    def _transaction(self) -> Generator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # Also of a commit that found no room, or no transaction would begin any more; SQLite may have done it itself.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _read(self, key: str) -> Stored | None:
        row = self._one("SELECT value, version FROM entries WHERE key = ?", key)
        return None if row is None else Stored(value=row[0], version=row[1])

    def _version(self, key: str) -> int:
        stored = self._read(key)
        return ABSENT if stored is None else stored.version

    def _next_version(self) -> int:
        self._db.execute("UPDATE revision SET version = version + 1")
        (version,) = self._db.execute("SELECT version FROM revision").fetchone()
        return int(version)

    def _end(self, lease_id: int) -> None:
        self._db.execute("DELETE FROM leases WHERE lease_id = ?", (lease_id,))
        self._db.execute("DELETE FROM entries WHERE lease_id = ?", (lease_id,))

    def _one(self, query: str, argument: object) -> tuple[bytes, int] | None:
        row: tuple[bytes, int] | None = self._db.execute(query, (argument,)).fetchone()
        return row


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
    write_ahead(db)
    db.execute("PRAGMA synchronous = FULL")  # a plan that was promised to sites must survive a power cut
    db.executescript(_SCHEMA)
    return db
