"""The registry of replicas on many machines: rows in etcd that vanish with their leases, and a watch that keeps a copy."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar

import msgspec

from sixfold.scaling.hub.etcd_client import EtcdSettings
from sixfold.scaling.hub.etcd_store import EtcdStore, Held
from sixfold.scaling.hub.store import ABSENT, Conflict, Lease, StoreUnavailable
from sixfold.scaling.registry import (
    Division,
    LeaseLost,
    RegistryUnavailable,
    ReplicaRecord,
    Row,
    division_of,
    record_of,
)

ResultT = TypeVar("ResultT")

_LOG = logging.getLogger(__name__)


_PREFIX = "replicas/"
_DIVISIONS = _PREFIX + ".divisions/"
"""Beside the replicas, so that one watch sees both; they have no lease."""
_RESCAN_S = 5.0
"""A watch that says nothing for so long is begun anew by a scan, which a member without a majority does not answer."""
_AGAIN_S = 0.5
_CALL_S = 30.0


@dataclass(slots=True)
class _Mine:
    """A row that this process holds."""

    record: ReplicaRecord
    lease: Lease
    version: int


class EtcdRegistry:
    """A `Registry` in etcd, for replicas and gateways on different machines.

    Holders renew a lease of etcd's, which writes nothing; etcd takes the row away when they fall silent. So rows have no count
    (`Row.renewals` is None) and no clock of a watcher ends them. Gateways read a copy that a watch keeps; it begins with the
    first `rows`.

    All calls of etcd run in one thread with an event loop of its own, since callers are threads.

    Args:
        settings: How etcd is reached.
        ttl_s: A replica that has not renewed its lease for so long is gone; etcd counts whole seconds.
    """

    def __init__(self, settings: EtcdSettings, *, ttl_s: float) -> None:
        self._store = EtcdStore(settings)
        self._ttl_s = ttl_s
        self._mine: dict[str, _Mine] = {}
        self._table: dict[str, Held] = {}
        self._fresh_s: float | None = None
        self._first_look: concurrent.futures.Future[None] | None = None
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def publish(self, record: ReplicaRecord) -> None:
        """See `Registry.publish`."""
        self._run(self._publish(record))

    def withdraw(self, replica_id: str, incarnation: int, *, renewals: int | None = None) -> bool:
        """See `Registry.withdraw`. Rows have no count here: one that was asked for with any is not removed."""
        return renewals is None and self._run(self._withdraw(replica_id, incarnation))

    def rows(self) -> Sequence[Row]:
        """See `Registry.rows`. All of them live, as far as this side of etcd has heard."""
        table = self._copy().items()
        found = (record_of(held.value) for key, held in sorted(table) if not key.startswith(_DIVISIONS))
        return [Row(record, None) for record in found if record is not None]

    def divide(self, service: str, division: Division | None) -> None:
        """See `Registry.divide`."""
        self._run(self._divide(service, division))

    def divisions(self) -> Sequence[Division]:
        """See `Registry.divisions`."""
        table = self._copy().items()
        found = (division_of(held.value) for key, held in sorted(table) if key.startswith(_DIVISIONS))
        return [division for division in found if division is not None]

    def _copy(self) -> Mapping[str, Held]:
        """What the watch keeps, by key."""
        with self._lock:
            begins = self._first_look is None
            first = self._first_look = self._first_look or concurrent.futures.Future()
        if begins:
            asyncio.run_coroutine_threadsafe(self._keep_watching(first), self._running_loop())
        concurrent.futures.wait((first,), timeout=_CALL_S)
        fresh_s = self._fresh_s
        if fresh_s is None or monotonic() - fresh_s > 2 * _RESCAN_S:
            raise RegistryUnavailable("etcd does not answer.")
        return self._table

    async def _divide(self, service: str, division: Division | None) -> None:
        key = _DIVISIONS + service
        stored = await self._store.get(key)
        if stored is None and division is None:
            return
        version = ABSENT if stored is None else stored.version
        await self._store.put(key, msgspec.json.encode(division), expected=version)

    async def _publish(self, record: ReplicaRecord) -> None:
        mine = self._mine.get(record.replica_id)
        key = _PREFIX + record.replica_id
        stored = await self._store.get(key)
        if stored is not None and mine is not None and stored.version == mine.version and mine.record == record:
            if await self._store.keep_alive(mine.lease):
                return
        elif stored is not None and (mine is None or stored.version != mine.version):
            other = record_of(stored.value)
            if other is not None and other.incarnation > record.incarnation:
                raise LeaseLost(f"The replica {record.replica_id!r} was published anew by another process.")
        await self._write(key, record, ABSENT if stored is None else stored.version)

    async def _write(self, key: str, record: ReplicaRecord, version: int) -> None:
        lease = await self._store.grant(self._ttl_s)
        written = await self._store.put(key, msgspec.json.encode(record), expected=version, lease=lease)
        self._mine[record.replica_id] = _Mine(record, lease, written)

    async def _withdraw(self, replica_id: str, incarnation: int) -> bool:
        key = _PREFIX + replica_id
        entries, _version = await self._store.scan(key)
        held = entries.get(key)
        record = None if held is None else record_of(held.value)
        if held is None or record is None or record.incarnation != incarnation:
            return False
        self._mine.pop(replica_id, None)
        await self._store.revoke(Lease(lease_id=held.lease_id, ttl_s=self._ttl_s))
        return True

    async def _keep_watching(self, first: concurrent.futures.Future[None]) -> None:
        while True:
            try:
                self._table, version = await self._store.scan(_PREFIX)
                self._fresh_s = monotonic()
                if not first.done():
                    first.set_result(None)
                await self._follow(version)
            except StoreUnavailable as error:
                _LOG.warning("the registry in etcd is not heard, the known replicas stay: %s", error)
                if not first.done():
                    first.set_result(None)
                await asyncio.sleep(_AGAIN_S)
            except Exception:  # a defect here must not freeze the picture without a word: the scan begins it anew
                _LOG.exception("watching the registry in etcd failed and is begun anew")
                await asyncio.sleep(_AGAIN_S)

    async def _follow(self, version: int) -> None:
        try:
            async with (
                asyncio.timeout(_RESCAN_S) as silence,
                self._store.follow(_PREFIX, after=version) as changes,
            ):
                async for change in changes:
                    table = dict(self._table)
                    for key, held in change.items():
                        if held is None:
                            table.pop(key, None)
                        else:
                            table[key] = held
                    self._table = table  # replaced whole: callers' threads read it
                    self._fresh_s = monotonic()
                    silence.reschedule(asyncio.get_running_loop().time() + _RESCAN_S)
        except TimeoutError:
            return

    def _run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        future = asyncio.run_coroutine_threadsafe(work, self._running_loop())
        try:
            return future.result(_CALL_S)
        except StoreUnavailable as error:
            raise RegistryUnavailable(str(error)) from error
        except Conflict as error:
            raise RegistryUnavailable(f"etcd: {error}; it is tried again at the next beat.") from error
        except TimeoutError as error:
            future.cancel()
            raise RegistryUnavailable("etcd does not answer.") from error

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="etcd-registry", daemon=True).start()
            return self._loop
