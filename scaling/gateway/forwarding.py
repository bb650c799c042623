"""What of a request goes on to a replica, and what of an answer comes back: headers, deadline, and the room for bodies."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from sixfold.core.errors import DeadlineExceeded, InvalidRequest, QueueFull
from sixfold.core.messages import Priority
from sixfold.core.serving.keys import MAX_TENANT
from sixfold.core.serving.request_facts import read_timeout_s
from sixfold.scaling.gateway.upstream import Headers

_OF_CONNECTION = frozenset(
    ("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
     "transfer-encoding", "upgrade")
)  # fmt: skip
_NOT_FORWARDED = _OF_CONNECTION | {
    "host",
    "origin",  # the gateway has checked it; for a replica it is that of another host
    "content-length",
    "expect",
    "x-request-timeout-s",
    "x-request-deadline",
}
_OF_WHOSE_KEY_IT_IS = frozenset(("x-tenant",))
"""Said by whom the key is that the replica sees: where that is the gateway's, no client says it."""
_NOT_PASSED_BACK = _OF_CONNECTION | {"date", "server", "x-request-id"}


def forwarded_headers(
    raw: Iterable[tuple[bytes, bytes]],
    *,
    request_id: str,
    replica_key: str | None,
    passes_key: bool = True,
    priority: Priority | None = None,
    trace: Mapping[str, str] | None = None,
) -> Headers:
    """The headers for a replica: the client's without those of its connection, and what the gateway says in their place.

    Args:
        raw: The client's.
        request_id: The gateway's for it.
        replica_key: Goes in the place of the client's key, if there is one.
        passes_key: Whether the replica checks the client's own key.
        priority: The class that the client's key gives it, which the replica can't know; None leaves that to the replica.
        trace: W3C headers in place of the client's, which are passed on where the gateway traces nothing.
    """
    own = {"x-request-id": request_id, **(trace or {})}
    if replica_key is not None:
        own["authorization"] = f"Bearer {replica_key}"
    if priority is not None:
        own["x-priority"] = priority.name.lower()
    named = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in raw)
    dropped = {*_NOT_FORWARDED, *own, *(() if passes_key else _OF_WHOSE_KEY_IT_IS)}
    kept = [(name, value) for name, value in named if name not in dropped]
    return [*kept, *own.items()]


def tenant_header(tenant: str) -> str:
    """For whom a request is, as a replica takes it in ``x-tenant``: the name, or a digest of one that is too long once quoted."""
    quoted = quote(tenant, safe="")
    if len(quoted) <= MAX_TENANT:
        return quoted
    return f"blake2b:{hashlib.blake2b(tenant.encode()).hexdigest()}"  # no quoted name has a colon


def passed_back(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers for the client: the replica's without those of its connection."""
    return [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in headers
        if name.lower() not in _NOT_PASSED_BACK
    ]


def deadline_of(headers: Mapping[str, str], *, limit_s: float | None, arrived_s: float) -> float | None:
    """Monotonic seconds by which a request must be done; None for never.

    Args:
        headers: Its own; ``x-request-timeout-s`` counts from its arrival, ``x-request-deadline`` is Unix time.
        limit_s: The most that it may take.
        arrived_s: When it came.

    Raises:
        InvalidRequest: A header makes no sense.
        DeadlineExceeded: Its deadline had passed when it came.
    """
    timeout_s = read_timeout_s(headers, limit_s)
    header = headers.get("x-request-deadline")
    if header is not None:
        try:
            left_s = float(header) - time.time()
        except ValueError:
            left_s = math.nan
        if not math.isfinite(left_s):
            raise InvalidRequest(f"Header x-request-deadline: {header[:40]!r} is no Unix time in seconds.")
        if left_s <= 0.0:
            raise DeadlineExceeded("The request's deadline had passed when it came. Compare the clocks if it had not.")
        timeout_s = left_s if timeout_s is None else min(timeout_s, left_s)
    return None if timeout_s is None else arrived_s + timeout_s


class Buffered:
    """Bytes of request bodies that are held, against their bound."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Counts bytes that came; give them back with a negative number.

        Raises:
            QueueFull: There is no room; nothing was counted.
        """
        if num_bytes > 0 and self.num_bytes + num_bytes > self._max_bytes:
            raise QueueFull("The gateway holds as many request bodies as it may. Try again later.", retry_after_s=1.0)
        self.num_bytes += num_bytes
