"""The playground at the gateway: the page of the servers behind it, asked of them each time, with the tabs of all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sixfold.core.errors import NotFound
from sixfold.core.serving.playground import PREFIX, PanelEntry
from sixfold.scaling.gateway.fleet import Fleet, Replica
from sixfold.scaling.gateway.forwarding import passed_back
from sixfold.scaling.gateway.upstream import Answer, AnswerTorn, Outgoing, ReplicaFailed, Upstream

_FACTS = PREFIX + "page.json"
_MAX_SOURCES = 8
"""Servers of different models that are asked for a file: a browser asks for a dozen, and nobody needs a key for it."""
_PASSED_ON = (b"accept", b"accept-encoding", b"if-none-match")
_PLAIN = b"sixfold gateway is running; see /v1/models\n"


class GatewayFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the page must know of a gateway; see `sixfold.core.serving.playground.PageFacts`.

    Attributes:
        panels: Of all servers.
        tells_decisions: Whether ``GET /decisions`` would answer.
        has_servers: Whether the live view is that of one server out of ``GET /live/servers``.
    """

    panels: tuple[PanelEntry, ...]
    tells_decisions: bool = True
    has_servers: bool = True


class _Panels(msgspec.Struct, frozen=True):
    panels: tuple[PanelEntry, ...] = ()


class PageRelay:
    """Answers ``/`` and what is below `PREFIX`, without a key as servers do. Used in one event loop.

    Args:
        fleet: The servers; only Sixfold's have a page.
        upstream: Reaches them.
        enabled: `sixfold.core.serving.settings.ServerSettings.playground` of the gateway.
        timeout_s: For one file of one server.
    """

    def __init__(self, fleet: Fleet, upstream: Upstream, *, enabled: bool, timeout_s: float) -> None:
        self._fleet = fleet
        self._upstream = upstream
        self._enabled = enabled
        self._timeout_s = timeout_s

    @staticmethod
    def takes(method: str, path: str) -> bool:
        """Whether a request is for the page."""
        return method in ("GET", "HEAD") and (path == "/" or path.startswith(PREFIX))

    async def answer(self, scope: Scope, receive: Receive, send: Send, headers: Mapping[bytes, bytes]) -> None:
        """Answers one request that it takes.

        Raises:
            NotFound: There is no such file, no server has a page, or it is off here.
        """
        path: str = scope["path"]
        if path == "/":
            wants_page = self._enabled and b"text/html" in headers.get(b"accept", b"")
            found = await self._find(scope, headers) if wants_page else None
            response = found or Response(_PLAIN, media_type="text/plain", headers={"vary": "accept"})
        elif ".." in path:  # asked without a key, so it must never become another path on its way
            raise NotFound("A path with '..' leads nowhere here.")
        elif not self._enabled:
            raise NotFound("The playground is off here: the operator can turn it on by server.playground.")
        elif path == _FACTS:
            response = await self._facts()
        else:
            file = await self._find(scope, headers)
            if file is None:
                raise NotFound("The playground has no such file, or no server that has it is up.")
            response = file
        await response(scope, receive, send)

    def _sources(self) -> Sequence[Replica]:
        """Servers that may have different pages: those of the same models are taken to have the same plugins."""
        found: dict[frozenset[str], Replica] = {}
        for replica in sorted(self._fleet, key=lambda each: each.record.replica_id):
            if replica.up and replica.store_id:
                found.setdefault(frozenset(replica.names), replica)
        return tuple(found.values())[:_MAX_SOURCES]

    async def _find(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Response | None:
        """The first server's answer that has it."""
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        target = raw.partition(b"?")[0].decode("latin-1")
        passed = tuple(
            (name.decode(), headers[name].decode("latin-1")) for name in _PASSED_ON if name in headers
        )  # fmt: skip
        for replica in self._sources():
            outgoing = Outgoing(method=scope["method"], target=target, headers=passed, body=b"")
            found = await self._ask(replica, outgoing)
            if found is not None and found[0].status in (200, 304):
                answer, body = found
                response = Response(body, answer.status)
                response.raw_headers = passed_back(answer.headers)
                return response
        return None

    async def _facts(self) -> Response:
        outgoing = Outgoing(method="GET", target=_FACTS, headers=(), body=b"")
        found = await asyncio.gather(*(self._ask(replica, outgoing) for replica in self._sources()))
        panels: dict[str, PanelEntry] = {}
        has_page = False
        for each in found:
            if each is not None and each[0].status == 200:
                has_page = True
                for panel in _panels(each[1]):
                    panels.setdefault(panel.id, panel)
        if not has_page:
            raise NotFound("No server that is up has a playground.")
        facts = GatewayFacts(panels=tuple(sorted(panels.values(), key=lambda panel: panel.order)))
        return Response(
            msgspec.json.encode(facts), media_type="application/json", headers={"cache-control": "no-cache"}
        )

    async def _ask(self, replica: Replica, outgoing: Outgoing) -> tuple[Answer, bytes] | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                with contextlib.closing(await self._upstream.send(replica.record.url, outgoing)) as answer:
                    return answer, await answer.read()
        except (ReplicaFailed, AnswerTorn, TimeoutError):
            return None


def _panels(body: bytes) -> tuple[PanelEntry, ...]:
    try:
        return msgspec.json.decode(body, type=_Panels).panels
    except (ValueError, RecursionError):  # of a server of another version
        return ()
