"""What browsers make particular: keys in the subprotocols of a WebSocket, and pages of other origins."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.types import Scope

from sixfold.core.errors import PermissionDenied

_KEY_PROTOCOL = "openai-insecure-api-key."
"""Begins the subprotocol in which browsers, which cannot set headers, carry their key."""


def key_of_subprotocol(scope: Scope) -> bytes | None:
    """The key that a browser carries in a subprotocol, as an Authorization header would; None without one."""
    offered: Sequence[str] = scope.get("subprotocols", ())
    for name in offered:
        if name.startswith(_KEY_PROTOCOL):
            return b"Bearer " + name.removeprefix(_KEY_PROTOCOL).encode("latin-1", "replace")
    return None


def choose_subprotocol(scope: Scope) -> str | None:
    """The first subprotocol on offer: browsers want one of theirs back. Never the one that holds a key."""
    return next((name for name in scope.get("subprotocols", ()) if name and not name.startswith(_KEY_PROTOCOL)), None)


def check_origin(scope: Scope, allowed: Sequence[str]) -> None:
    """Refuses pages of other origins: browsers let any page open a WebSocket, or post a form, to any host and to this desk.

    Raises:
        PermissionDenied: It comes from a page that is neither this server's nor in ``server.cors_origins``.
    """
    headers: dict[bytes, bytes] = dict(scope["headers"])
    origin = headers.get(b"origin", b"").decode("latin-1")
    if not origin or "*" in allowed or origin in allowed:
        return
    host = headers.get(b"host", b"").decode("latin-1").lower()
    if host and _netloc(origin) == host:
        return
    raise PermissionDenied(
        "Pages of this origin may not call this server. The operator can add it to cors_origins, or let the proxy before the "
        "server keep the Host header."
    )


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
