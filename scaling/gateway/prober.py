"""Keeps the fleet's picture fresh: probes each replica, and reads the registry."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import msgspec

from sixfold.scaling.gateway.fleet import Fleet, Replica, read_listing
from sixfold.scaling.gateway.settings import GatewaySettings
from sixfold.scaling.gateway.upstream import ReplicaFailed, Upstream
from sixfold.scaling.registry import Division, LeaseView, Registry, RegistryUnavailable, ReplicaRecord, Row

_LOG = logging.getLogger(__name__)

_REGISTRY = "registry"


class _Readiness(msgspec.Struct, frozen=True):
    status: str = ""
    store_id: str = ""


class _Listing(msgspec.Struct, frozen=True):
    data: tuple[msgspec.Raw, ...] = ()
    acts_for_others: bool = False


class Prober:
    """Background work of one gateway. Used in one event loop.

    Args:
        settings: All of the gateway's.
        fleet: Told what was found.
        upstream: Reaches the replicas.
        registry: Where replicas publish themselves, if anywhere.
        clock: Monotonic seconds.
        on_unavailable: Called when the registry can't be read or written.
        on_divisions: Told how requests are divided by what the registry says; None where this process divides them itself.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        fleet: Fleet,
        upstream: Upstream,
        registry: Registry | None,
        clock: Callable[[], float],
        on_unavailable: Callable[[], None],
        on_divisions: Callable[[Sequence[Division]], None] | None = None,
    ) -> None:
        self._on_divisions = on_divisions
        self._on_unavailable = on_unavailable
        self._settings = settings
        self._fleet = fleet
        self._upstream = upstream
        self._registry = registry
        self._clock = clock
        key = settings.probe_key or settings.replica_key
        self._asks_as_requests = key == settings.replica_key
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        ttl_s = settings.registry.ttl_s if settings.registry else 1.0
        self._leases = LeaseView(ttl_s)
        self._watch_s = ttl_s / 4.0
        self._hurry = asyncio.Event()
        self._published: dict[str, Sequence[ReplicaRecord]] = {}
        self._static = tuple(
            ReplicaRecord(
                replica_id=entry.url, url=entry.url, region=entry.region, weight=entry.weight,
                kv_events=entry.kv_events, kv_replay=entry.kv_replay, role=entry.role, site=entry.site,
            )
            for entry in settings.replicas
        )  # fmt: skip

    async def run(self, on_first_look: Callable[[], None] = lambda: None) -> None:
        """Watches until it is cancelled.

        Args:
            on_first_look: Called when every replica that is known at the start was probed once.
        """
        await self.read_registry()
        await self.probe_all()
        on_first_look()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_probing())
            if self._registry is not None:
                group.create_task(self._keep_reading())

    def hurry(self) -> None:
        """Something failed: look now."""
        self._hurry.set()

    def publish(self, source: str, records: Sequence[ReplicaRecord]) -> None:
        """Takes over who is there by one source; those of the others stay. Who is new is probed at once."""
        self._published[source] = records
        known = {replica.record.replica_id for replica in self._fleet}
        self._fleet.set_records((*self._static, *(each for own in self._published.values() for each in own)))
        if any(record.replica_id not in known for record in records):
            self.hurry()

    async def read_registry(self) -> None:
        """Takes over who is published now, and clears away who was for long not."""
        if self._registry is None:
            self.publish(_REGISTRY, ())
            return
        try:
            rows = await asyncio.to_thread(self._registry.rows)
            if self._on_divisions is not None:
                self._on_divisions(await asyncio.to_thread(self._registry.divisions))
        except RegistryUnavailable as error:  # what was known stays in force, which is what survives it
            self._on_unavailable()
            _LOG.warning("the registry can't be read, the known replicas stay: %s", error)
            return
        now_s = self._clock()
        alive = self._leases.observe(rows, now_s)
        self.publish(_REGISTRY, tuple(alive.values()))
        for row in self._leases.abandoned(rows, now_s):
            await self._clear_away(self._registry, row)

    async def _clear_away(self, registry: Registry, row: Row) -> None:
        record = row.record
        try:
            await asyncio.to_thread(registry.withdraw, record.replica_id, record.incarnation, renewals=row.renewals)
        except RegistryUnavailable as error:
            self._on_unavailable()
            _LOG.warning("the row of %s is left in the registry: %s", record.replica_id, error)

    async def probe_all(self) -> None:
        """Probes every replica once, all at the same time."""
        await asyncio.gather(*(self._probe(replica) for replica in self._fleet))

    async def _keep_probing(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._settings.health.interval_s):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            self._hurry.clear()
            await self.probe_all()

    async def _keep_reading(self) -> None:
        while True:
            await asyncio.sleep(self._watch_s)
            await self.read_registry()
            if not all(replica.up for replica in self._fleet):
                self.hurry()

    async def _probe(self, replica: Replica) -> None:
        url, timeout_s = replica.record.url, self._settings.health.timeout_s
        try:
            status, body = await self._upstream.get(url, "/v1/models", self._headers, timeout_s=timeout_s)
            if status != 200:
                raise ReplicaFailed(f"/v1/models answers {status}", begun=False)
            models = msgspec.json.decode(body, type=_Listing)
            listing = read_listing(models.data)
            ready, state = await self._upstream.get(url, "/ready", self._headers, timeout_s=timeout_s)
            told = _readiness(ready, state)
        except (ReplicaFailed, ValueError, RecursionError) as error:  # the latter two are what decoders raise
            if replica.up:
                _LOG.warning("replica %s is down: %s", replica.record.replica_id, error)
            self._fleet.unreachable(replica)
        else:
            self._fleet.probed(
                replica,
                listing,
                draining=ready == 503 and told.status == "draining",
                store_id=told.store_id,
                # What another key may says nothing of the one that requests come with.
                tells_tenants=models.acts_for_others and self._asks_as_requests,
            )


def _readiness(status: int, body: bytes) -> _Readiness:
    """What ``/ready`` tells; nothing where it is a page of another server.

    Raises:
        ValueError: A server that is not ready says so in no JSON.
    """
    try:
        return msgspec.json.decode(body, type=_Readiness)
    except ValueError:
        if status == 503:
            raise
        return _Readiness()
