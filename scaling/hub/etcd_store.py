"""The store of a hub with candidates at three sites: etcd, over the HTTP/JSON face that every etcd serves.

Source: etcd, API reference: gRPC gateway (v3), transactions, leases and watches.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, cast

from sixfold.scaling.hub.http_client import CallFailed, HttpClient
from sixfold.scaling.hub.store import ABSENT, Conflict, Fence, Fenced, Lease, Stored, StoreUnavailable


class EtcdStore:
    """A `Store` in etcd 3.4 or later.

    Args:
        endpoints: Base addresses of members; when one does not answer the next is tried.
        prefix: In front of every key, so that several fleets may share an etcd.
        timeout_s: For one call to one member.
        tls: Certificates for https.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        prefix: str = "/sixfold/",
        timeout_s: float = 2.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._members = [HttpClient(url, timeout_s=timeout_s, tls=tls) for url in endpoints]
        self._prefix = prefix
        self._current = 0

    async def get(self, key: str) -> Stored | None:
        """See `Store`. Linearizable: a member without a majority does not answer."""
        answer = await self._call("/v3/kv/range", {"key": self._key(key)}, repeatable=True)
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
            answer = await self._call("/v3/kv/txn", body, repeatable=False)
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
        answer = await self._call("/v3/lease/grant", {"TTL": str(math.ceil(ttl_s))}, repeatable=True)
        return Lease(lease_id=int(answer["ID"]), ttl_s=float(answer["TTL"]))

    async def keep_alive(self, lease: Lease) -> bool:
        """See `Store`."""
        answer = await self._call("/v3/lease/keepalive", {"ID": str(lease.lease_id)}, repeatable=True)
        return int(answer.get("result", {}).get("TTL", 0)) > 0

    async def revoke(self, lease: Lease) -> None:
        """See `Store`."""
        try:
            await self._call("/v3/lease/revoke", {"ID": str(lease.lease_id)}, repeatable=True)
        except StoreUnavailable as error:
            if "lease not found" not in str(error):
                raise

    async def watch(self, key: str, *, after: int, timeout_s: float) -> Stored | None:
        """See `Store`."""
        stored = await self.get(key)  # events may have been compacted away; the newest value never is
        if stored is not None and stored.version > after:
            return stored
        body = {"create_request": {"key": self._key(key), "start_revision": str(after + 1), "filters": ["NODELETE"]}}
        member = self._members[self._current]
        try:
            async with (
                asyncio.timeout(timeout_s),
                member.stream("POST", "/v3/watch", json.dumps(body).encode()) as chunks,
            ):
                line = b""
                async for chunk in chunks:
                    *lines, line = (line + chunk).split(b"\n")
                    for text in filter(None, lines):
                        events = json.loads(text).get("result", {}).get("events", ())
                        if events:
                            return _stored(events[-1]["kv"])
        except TimeoutError:
            return None
        except CallFailed as error:
            self._next_member()
            raise StoreUnavailable(str(error)) from error
        return None

    async def close(self) -> None:
        """See `Store`; no connection outlives its call."""

    async def _call(self, path: str, body: Mapping[str, object], *, repeatable: bool) -> dict[str, Any]:
        """Asks the current member, then the others. What may have happened already is not asked for again."""
        problem = "no member"
        for _ in self._members:
            try:
                answer = await self._members[self._current].call("POST", path, json.dumps(body).encode())
                return cast(dict[str, Any], json.loads(answer.partition(b"\n")[0] or b"{}"))
            except CallFailed as error:
                problem = str(error)
                if "lease not found" in problem:
                    break
                self._next_member()
                if error.sent and not repeatable:
                    break
            except ValueError as error:
                problem = f"not JSON: {error}"
                break
        raise StoreUnavailable(f"etcd: {problem}")

    def _next_member(self) -> None:
        self._current = (self._current + 1) % len(self._members)

    def _key(self, key: str) -> str:
        return _encode((self._prefix + key).encode())

    def _has_version(self, key: str, version: int) -> dict[str, str]:
        return {"target": "MOD", "result": "EQUAL", "key": self._key(key), "mod_revision": str(version)}


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _first(answer: Mapping[str, Any]) -> Stored | None:
    entries = answer.get("kvs") or ()
    return _stored(entries[0]) if entries else None


def _stored(entry: Mapping[str, Any]) -> Stored:
    return Stored(value=base64.b64decode(entry.get("value", "")), version=int(entry["mod_revision"]))
