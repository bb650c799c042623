"""Who serves right now, over many machines: the registry in etcd, by the HTTP/JSON face that every etcd serves.

Source: etcd, API reference: gRPC gateway (v3), ranges and transactions.
"""

from __future__ import annotations

import base64
import http.client
import json
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from sixfold.core.errors import ConfigError
from sixfold.scaling.registry import (
    LeaseLost,
    Registry,
    RegistryUnavailable,
    ReplicaRecord,
    Row,
    SqliteRegistry,
    row_of,
)

ETCD_SCHEME = "etcd://"
_TIMEOUT_S = 1.0
_TRIES = 4
"""A row has one holder, so two writes of it meet only where an old and a new start overlap, or a watcher clears it away."""


class EtcdRegistry:
    """A registry in etcd 3.4 or later.

    Rows are compared and set by their versions, so that what `Registry` promises holds with any number of writers. The keys
    are under no lease of etcd's: whether a holder lives is for the watchers to say, by their own clocks, as in a file.

    Args:
        address: ``etcd://HOST:PORT[,HOST:PORT...][/PREFIX]``. A member that does not answer makes way for the next.

    Raises:
        ConfigError: The address is none.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        members = [member for member in parts.netloc.split(",") if member]
        if not address.startswith(ETCD_SCHEME) or not members or any(":" not in member for member in members):
            raise ConfigError(
                f"registry: {address!r} is no etcd. Write etcd://HOST:PORT, with further members after commas and, if "
                "several fleets share it, a prefix: etcd://a:2379,b:2379/ward-7."
            )
        self._members = members
        self._prefix = f"/sixfold/{parts.path.strip('/') or 'replicas'}/"

    def publish(self, record: ReplicaRecord) -> None:
        """See `Registry.publish`."""
        for _ in range(_TRIES):
            found, version = self._get(record.replica_id)
            if found is not None and found.record.incarnation > record.incarnation:
                raise LeaseLost(f"The replica {record.replica_id!r} was published anew by another process.")
            row = Row(record, 1 if found is None else found.renewals + 1)
            if self._change(record.replica_id, version, put=msgspec.json.encode(row)):
                return
        raise RegistryUnavailable(f"etcd: the row of {record.replica_id} is written by others all the time.")

    def withdraw(self, replica_id: str, incarnation: int, *, renewals: int | None = None) -> bool:
        """See `Registry.withdraw`."""
        for _ in range(_TRIES):
            found, version = self._get(replica_id)
            if found is None or found.record.incarnation != incarnation or renewals not in (None, found.renewals):
                return False
            if self._change(replica_id, version, put=None):
                return True
        return False

    def rows(self) -> Sequence[Row]:
        """See `Registry.rows`. Linearizable: a member without a majority does not answer, and what was known stays."""
        body = {"key": _text(self._prefix), "range_end": _text(_end_of(self._prefix))}
        found = self._call("/v3/kv/range", body).get("kvs") or ()
        return [row for entry in found if (row := row_of(base64.b64decode(entry.get("value", "")))) is not None]

    def _get(self, replica_id: str) -> tuple[Row | None, int]:
        """A row and the version that a write must find; an unreadable row has a version and may be written over."""
        found = self._call("/v3/kv/range", {"key": _text(self._prefix + replica_id)}).get("kvs") or ()
        if not found:
            return None, 0
        return row_of(base64.b64decode(found[0].get("value", ""))), int(found[0]["mod_revision"])

    def _change(self, replica_id: str, version: int, *, put: bytes | None) -> bool:
        """Writes or removes a row that still has the version; says whether it had."""
        key = _text(self._prefix + replica_id)
        compare = {"target": "MOD", "result": "EQUAL", "key": key, "mod_revision": str(version)}
        if put is None:
            change: dict[str, Any] = {"request_delete_range": {"key": key}}
        else:
            change = {"request_put": {"key": key, "value": base64.b64encode(put).decode()}}
        return bool(self._call("/v3/kv/txn", {"compare": [compare], "success": [change]}).get("succeeded"))

    def _call(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        problem = ""
        for member in self._members:
            request = urllib.request.Request(
                f"http://{member}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                    found: dict[str, Any] = json.loads(answer.read() or b"{}")
                    return found
            except (OSError, http.client.HTTPException, ValueError) as error:
                # Whether a write that was not answered has happened does not matter: a row is only ever raised or removed.
                problem = f"{member}: {type(error).__name__}: {error}"
        raise RegistryUnavailable(f"etcd does not answer: {problem}.")


def open_registry(address: Path | str) -> Registry:
    """The registry at an address: ``etcd://HOST:PORT`` for many machines, or a file of this one.

    Raises:
        ConfigError: It is no address, or the file can't be opened.
    """
    return EtcdRegistry(str(address)) if str(address).startswith("etcd:") else SqliteRegistry(Path(address))


def _text(key: str) -> str:
    return base64.b64encode(key.encode()).decode()


def _end_of(prefix: str) -> str:
    """The first key after all that begin with the prefix."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
