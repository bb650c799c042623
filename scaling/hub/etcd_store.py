"""The store of a hub with candidates at three sites: etcd, over the HTTP/JSON face that every etcd serves.

Source: etcd, API reference: gRPC gateway (v3), transactions, leases and watches.
"""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from sixfold.scaling.hub.etcd_client import EtcdClient, EtcdSettings
from sixfold.scaling.hub.store import ABSENT, Conflict, Fence, Fenced, Lease, Stored, StoreUnavailable


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A value, the version that wrote it, and the lease that holds it; 0 for none."""

    value: bytes
    version: int
    lease_id: int


class EtcdStore:
    """A `Store` in etcd 3.4 or later.

    Args:
        settings: How it is reached.
    """

    def __init__(self, settings: EtcdSettings) -> None:
        self._client = EtcdClient(settings)
        self._prefix = settings.prefix

    async def get(self, key: str) -> Stored | None:
        """See `Store`. Linearizable: a member without a majority does not answer."""
        answer = await self._client.call("/v3/kv/range", {"key": self._key(key)}, repeatable=True)
        return _first(answer)

    async def put(
        self, key: str, value: bytes, *, expected: int, fence: Fence | None = None, lease: Lease | None = None
    ) -> int:
        """See `Store`."""
        compares = [self._has_version(key, expected)]
        looks = [{"request_range": {"key": self._key(key)}}]
        if fence is not None:
            compares.append(self._has_version(fence.key, fence.version))
            looks.append({"request_range": {"key": self._key(fence.key)}})
        put = {"key": self._key(key), "value": _encode(value), "lease": str(0 if lease is None else lease.lease_id)}
        body = {"compare": compares, "success": [{"request_put": put}], "failure": looks}
        try:
            answer = await self._client.call("/v3/kv/txn", body, repeatable=False)
        except StoreUnavailable as error:
            if "lease not found" in str(error):
                raise Conflict("the lease has ended") from None
            raise
        if answer.get("succeeded"):
            return int(answer["header"]["revision"])
        if fence is not None:
            owner = _first(answer["responses"][1]["response_range"])
            if (ABSENT if owner is None else owner.version) != fence.version:
                raise Fenced(f"{fence.key} has another owner")
        raise Conflict(f"{key} was written by somebody else")

    async def grant(self, ttl_s: float) -> Lease:
        """See `Store`. etcd counts whole seconds, and not fewer than an election may take."""
        answer = await self._client.call("/v3/lease/grant", {"TTL": str(math.ceil(ttl_s))}, repeatable=True)
        return Lease(lease_id=int(answer["ID"]), ttl_s=float(answer["TTL"]))

    async def keep_alive(self, lease: Lease) -> bool:
        """See `Store`."""
        answer = await self._client.call("/v3/lease/keepalive", {"ID": str(lease.lease_id)}, repeatable=True)
        return int(answer.get("result", {}).get("TTL", 0)) > 0

    async def revoke(self, lease: Lease) -> None:
        """See `Store`."""
        try:
            await self._client.call("/v3/lease/revoke", {"ID": str(lease.lease_id)}, repeatable=True)
        except StoreUnavailable as error:
            if "lease not found" not in str(error):
                raise

    async def watch(self, key: str, *, after: int, timeout_s: float) -> Stored | None:
        """See `Store`."""
        stored = await self.get(key)  # events may have been compacted away; the newest value never is
        if stored is not None and stored.version > after:
            return stored
        create = {"key": self._key(key), "start_revision": str(after + 1), "filters": ["NODELETE"]}
        try:
            async with asyncio.timeout(timeout_s), self._client.watch(create) as results:
                async for result in results:
                    if events := result.get("events", ()):
                        return _stored(events[-1]["kv"])
        except TimeoutError:
            pass
        return None

    async def scan(self, prefix: str) -> tuple[dict[str, Held], int]:
        """All entries whose keys begin so, by key, and the version of the store that they are of."""
        answer = await self._client.call("/v3/kv/range", self._range(prefix), repeatable=True)
        found = [self._held(entry) for entry in answer.get("kvs", ())]
        return dict(found), int(answer["header"]["revision"])

    @asynccontextmanager
    async def follow(self, prefix: str, *, after: int) -> AsyncGenerator[AsyncIterator[Mapping[str, Held | None]]]:
        """Changes of such keys after a version, as they come; None for one that vanished.

        It ends without an error where the changes since are no longer known: then scan again.

        Raises:
            StoreUnavailable: The connection was lost.
        """
        async with self._client.watch({**self._range(prefix), "start_revision": str(after + 1)}) as results:
            yield self._changes(results)

    async def _changes(self, results: AsyncIterator[dict[str, Any]]) -> AsyncIterator[Mapping[str, Held | None]]:
        async for result in results:
            if result.get("canceled"):  # compacted away, or the token has ended
                return
            changes: dict[str, Held | None] = {}
            for event in result.get("events", ()):
                key, held = self._held(event["kv"])
                changes[key] = None if event.get("type") == "DELETE" else held
            if changes:
                yield changes

    async def close(self) -> None:
        """See `Store`; no connection outlives its call."""

    def _key(self, key: str) -> str:
        return _encode((self._prefix + key).encode())

    def _range(self, prefix: str) -> dict[str, str]:
        begin = (self._prefix + prefix).encode()
        return {"key": _encode(begin), "range_end": _encode(begin[:-1] + bytes([begin[-1] + 1]))}

    def _held(self, entry: Mapping[str, Any]) -> tuple[str, Held]:
        key = base64.b64decode(entry["key"]).decode(errors="replace").removeprefix(self._prefix)
        stored = _stored(entry)
        return key, Held(value=stored.value, version=stored.version, lease_id=int(entry.get("lease", 0)))

    def _has_version(self, key: str, version: int) -> dict[str, str]:
        return {"target": "MOD", "result": "EQUAL", "key": self._key(key), "mod_revision": str(version)}


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _first(answer: Mapping[str, Any]) -> Stored | None:
    entries = answer.get("kvs") or ()
    return _stored(entries[0]) if entries else None


def _stored(entry: Mapping[str, Any]) -> Stored:
    return Stored(value=base64.b64decode(entry.get("value", "")), version=int(entry["mod_revision"]))
