"""Who serves right now: replicas publish themselves under leases, gateways watch.

A lease is a count that its holder raises. A watcher ends it when the count stood still for the lease's time on the watcher's own
clock, so clocks of different machines are never compared; only their speeds must agree. Writes are compare-and-set by the
incarnation: a replica that was replaced can't come back over its successor.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from sixfold.core.errors import ConfigError, SixfoldError
from sixfold.core.sqlite_thread import write_ahead

_LOG = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS replicas (
    replica_id TEXT PRIMARY KEY, incarnation INTEGER NOT NULL, renewals INTEGER NOT NULL, record BLOB NOT NULL
)
"""
_DIVISIONS = "CREATE TABLE IF NOT EXISTS divisions (service TEXT PRIMARY KEY, division BLOB NOT NULL)"
_BUSY_TIMEOUT_S = 2.0
_KEPT_LEASES = 10
"""A row that stood still for so many lease times is removed by whoever sees it."""


class RegistryUnavailable(SixfoldError):
    """The registry can't be read or written at this moment; what was known still holds."""


class LeaseLost(SixfoldError):
    """Another process has published itself under the same id, with a higher incarnation."""


class ReplicaRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica says of itself.

    Attributes:
        replica_id: The same over restarts, such as its address.
        url: Where requests go, without a trailing slash.
        incarnation: Rises with every start; what an earlier one held in memory is lost.
        region: Where it runs.
        site: The plan's site that it belongs to; where empty, the region's name is taken for it.
        weight: How much it takes in relation to others.
        block_size: Tokens per block of its cache; None if it announces none.
        kv_events: Where it announces what it caches (ZMQ), if anywhere.
        kv_replay: Where missed announcements can be asked for.
        role: ``prefill`` for one that computes prompts for others and answers only where nobody else does.
        draining: Whether it takes no new requests.
        revision: Of its service: another one was started with other settings. Empty where nobody tells them apart.
    """

    replica_id: str
    url: str
    incarnation: int = 0
    region: str = ""
    site: str = ""
    weight: float = 1.0
    block_size: int | None = None
    kv_events: str | None = None
    kv_replay: str | None = None
    role: Literal["any", "prefill"] = "any"
    draining: bool = False
    revision: str = ""


class Row(msgspec.Struct, frozen=True):
    """A record with the count that its holder raises; None where the registry itself ends leases, so that who is listed lives."""

    record: ReplicaRecord
    renewals: int | None


class Division(msgspec.Struct, frozen=True, kw_only=True):
    """How the requests of a service are divided while one revision of it replaces another; every gateway holds the share.

    Attributes:
        service: Whose rollout it is.
        names: What clients call its model.
        old: The revision that takes what the new one does not.
        new: The one on trial.
        share: Of the requests, that the new one gets.
    """

    service: str
    names: tuple[str, ...]
    old: str
    new: str
    share: float


class Registry(Protocol):
    """A small table that many processes share. Calls may block for a moment: call them in a thread.

    Each raises `RegistryUnavailable` where the table can't be had at the moment.
    """

    def publish(self, record: ReplicaRecord) -> None:
        """Adds or replaces the replica's row, and raises its count.

        Raises:
            LeaseLost: There is a row of a higher incarnation.
        """
        ...

    def withdraw(self, replica_id: str, incarnation: int, *, renewals: int | None = None) -> bool:
        """Removes the row if it is still of this incarnation (and of this count, if one is given); says whether."""
        ...

    def rows(self) -> Sequence[Row]:
        """All rows; also those of holders that are gone, where rows have counts."""
        ...

    def divide(self, service: str, division: Division | None) -> None:
        """Keeps how a service's requests are divided until it is said anew, whatever becomes of who says it; None ends it."""
        ...

    def divisions(self) -> Sequence[Division]:
        """All that hold."""
        ...


class SqliteRegistry:
    """A registry in a file, for the processes of one machine.

    Args:
        path: Made unless it exists; its folder must exist.

    Raises:
        ConfigError: The file can't be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with self._transaction() as connection:
                write_ahead(connection)
                connection.execute(_SCHEMA)
                connection.execute(_DIVISIONS)
        except RegistryUnavailable as error:
            raise ConfigError(f"registry: {error} Name a file in a folder that exists.") from error

    def publish(self, record: ReplicaRecord) -> None:
        """See `Registry.publish`."""
        with self._transaction() as connection:
            changed = connection.execute(
                "INSERT INTO replicas VALUES (?, ?, 1, ?) ON CONFLICT (replica_id) DO UPDATE SET "
                "incarnation = excluded.incarnation, renewals = renewals + 1, record = excluded.record "
                "WHERE incarnation <= excluded.incarnation",
                (record.replica_id, record.incarnation, msgspec.json.encode(record)),
            ).rowcount
        if not changed:
            raise LeaseLost(f"The replica {record.replica_id!r} was published anew by another process.")

    def withdraw(self, replica_id: str, incarnation: int, *, renewals: int | None = None) -> bool:
        """See `Registry.withdraw`."""
        with self._transaction() as connection:
            cursor = connection.execute(
                "DELETE FROM replicas WHERE replica_id = ? AND incarnation = ? AND renewals = COALESCE(?, renewals)",
                (replica_id, incarnation, renewals),
            )
            return cursor.rowcount > 0

    def rows(self) -> Sequence[Row]:
        """See `Registry.rows`."""
        with self._transaction() as connection:
            found = connection.execute("SELECT record, renewals FROM replicas ORDER BY replica_id").fetchall()
        return [Row(record, renewals) for raw, renewals in found if (record := record_of(raw)) is not None]

    def divide(self, service: str, division: Division | None) -> None:
        """See `Registry.divide`."""
        with self._transaction() as connection:
            if division is None:
                connection.execute("DELETE FROM divisions WHERE service = ?", (service,))
            else:
                row = (service, msgspec.json.encode(division))
                connection.execute("INSERT OR REPLACE INTO divisions VALUES (?, ?)", row)

    def divisions(self) -> Sequence[Division]:
        """See `Registry.divisions`."""
        with self._transaction() as connection:
            found = connection.execute("SELECT division FROM divisions ORDER BY service").fetchall()
        return [division for (raw,) in found if (division := division_of(raw)) is not None]

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        # One connection a call: SQLite's are bound to threads, and this is called a few times a second.
        try:
            with closing(sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S)) as connection, connection:
                yield connection
        except sqlite3.Error as error:
            raise RegistryUnavailable(f"{self._path} can't be used: {error}.") from error


def record_of(raw: bytes) -> ReplicaRecord | None:
    """A row's record; None for one that another version or program has written, which must not hide the others."""
    try:
        return msgspec.json.decode(raw, type=ReplicaRecord)
    except (ValueError, RecursionError) as error:
        _LOG.warning("a row of the registry can't be read and is passed over: %s", error)
        return None


def division_of(raw: bytes) -> Division | None:
    """A division as it was written; None for one that has ended, or that another version has written."""
    try:
        return msgspec.json.decode(raw, type=Division | None)
    except (ValueError, RecursionError) as error:
        _LOG.warning("how requests are divided can't be read and is passed over: %s", error)
        return None


class LeaseView:
    """What a watcher concludes from the rows that it reads: a pure fold over (rows, now).

    Args:
        ttl_s: How long a count may stand still.
    """

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._seen: dict[str, tuple[tuple[int, int | None], float]] = {}

    def observe(self, rows: Sequence[Row], now_s: float) -> Mapping[str, ReplicaRecord]:
        """The replicas whose leases hold, by id.

        A row that is seen for the first time gets one lease's time: whether its holder lives will show by then.
        """
        seen: dict[str, tuple[tuple[int, int | None], float]] = {}
        alive: dict[str, ReplicaRecord] = {}
        for row in rows:
            replica_id = row.record.replica_id
            mark = (row.record.incarnation, row.renewals)
            before = self._seen.get(replica_id)
            stands = row.renewals is not None and before is not None and before[0] == mark
            seen[replica_id] = before if stands and before is not None else (mark, now_s)
            if now_s - seen[replica_id][1] <= self._ttl_s:
                alive[replica_id] = row.record
        self._seen = seen
        return alive

    def abandoned(self, rows: Sequence[Row], now_s: float) -> Sequence[Row]:
        """Of the rows that were observed last, those that stood still for many leases."""
        limit_s = _KEPT_LEASES * self._ttl_s
        return [row for row in rows if now_s - self._seen.get(row.record.replica_id, ((0, 0), now_s))[1] > limit_s]


@asynccontextmanager
async def lease(registry: Registry, record: ReplicaRecord, *, ttl_s: float) -> AsyncGenerator[None]:
    """Holds a replica's lease while the block runs, and gives it back at the end.

    The block is cancelled with `LeaseLost` when another process has taken the id over. A registry that is not there for a while
    costs renewals and not the lease's holder: it is tried again at the next beat.
    """
    await asyncio.to_thread(registry.publish, record)

    async def renew() -> None:
        while True:
            await asyncio.sleep(ttl_s / 3.0)
            try:
                await asyncio.to_thread(registry.publish, record)
            except RegistryUnavailable as error:
                _LOG.warning("the lease of %s is not renewed: %s", record.replica_id, error)

    try:
        async with asyncio.TaskGroup() as group:
            renewing = group.create_task(renew())
            try:
                yield
            finally:
                renewing.cancel()
    except* LeaseLost as lost:
        raise lost.exceptions[0] from None
    finally:
        try:
            await asyncio.to_thread(registry.withdraw, record.replica_id, record.incarnation)
        except RegistryUnavailable as error:
            _LOG.warning("the lease of %s ends by itself: %s", record.replica_id, error)
