"""``GET /live`` at the gateway: the batches of one server at a time, which the caller chooses, cut to what its key may see.

Not a sum over servers: a lane of the view is a sequence in one batch, and a hundred servers' steps are nobody's picture.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping
from urllib.parse import parse_qs

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sixfold.core.errors import NotFound, NotReady, RateLimited
from sixfold.core.serving.drain import Drain
from sixfold.core.serving.keys import Principal
from sixfold.core.serving.live_messages import (
    LiveDevice,
    LiveHolding,
    LiveMessage,
    LiveModel,
    LiveReplica,
    SequenceJoined,
)
from sixfold.core.serving.live_routes import MAX_FEEDS
from sixfold.core.serving.sse import event_frame
from sixfold.scaling.gateway.events import WholeEvents
from sixfold.scaling.gateway.fleet import Fleet, Replica
from sixfold.scaling.gateway.forwarding import forwarded_headers, passed_back, tenant_header
from sixfold.scaling.gateway.geography import Geography
from sixfold.scaling.gateway.settings import GatewaySettings
from sixfold.scaling.gateway.upstream import Answer, AnswerTorn, Outgoing, ReplicaFailed, Upstream

_OTHERS = "other models"
_DATA = b"data: "
_PASSED_ON = (b"accept", b"authorization", b"x-tenant")


class LiveServer(msgspec.Struct, frozen=True, kw_only=True):
    """A server that can be watched.

    Attributes:
        id: For ``/live?server=``.
        region: Where it runs.
        models: That it serves and the key may use.
    """

    id: str
    region: str
    models: tuple[str, ...]


class LiveRelay:
    """Answers ``/live`` and ``/live/servers``. Used in one event loop.

    Args:
        settings: Of the gateway.
        fleet: The servers; only Sixfold's can be watched.
        geography: Which regions may be looked into from here.
        upstream: Reaches them.
        drain: Feeds end when it begins.
    """

    def __init__(
        self, settings: GatewaySettings, fleet: Fleet, geography: Geography, upstream: Upstream, drain: Drain
    ) -> None:
        self._settings = settings
        self._fleet = fleet
        self._geography = geography
        self._upstream = upstream
        self._drain = drain
        self._num_feeds: Counter[str] = Counter()

    @staticmethod
    def takes(method: str, path: str) -> bool:
        """Whether a request is for the live view."""
        return method in ("GET", "HEAD") and path in ("/live", "/live/servers")

    async def answer(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: Mapping[bytes, bytes],
        principal: Principal,
        tenant: str,
        request_id: str,
    ) -> None:
        """Answers one request that it takes.

        Args:
            scope: ASGI's.
            receive: ASGI's.
            send: ASGI's.
            headers: Lower-case names.
            principal: Whose key it is.
            tenant: For whom it is, as a replica is told.
            request_id: The client's or a new one.

        Raises:
            NotFound: There is no such server, or none that the key may see anything of.
            NotReady: It is not up.
            RateLimited: As many of this tenant watch already as may.
        """
        servers = self._servers(principal)
        if scope["path"] == "/live/servers":
            body = msgspec.json.encode({"object": "list", "data": tuple(servers.values())})
            await Response(body, media_type="application/json")(scope, receive, send)
            return
        wanted = parse_qs(scope["query_string"].decode("latin-1")).get("server", ())
        if not servers:
            raise NotReady("No server that can be watched is up right now. Try again in a moment.", retry_after_s=2.0)
        server_id = wanted[0] if wanted else next(iter(servers))
        replica = self._fleet.get(server_id) if server_id in servers else None
        if replica is None:
            raise NotFound(
                "There is no such server to watch. GET /live/servers lists those that there are.", param="server"
            )
        if self._num_feeds[tenant] >= MAX_FEEDS:
            raise RateLimited(
                f"{MAX_FEEDS} live views of this key are open already. Close one and try again.", retry_after_s=5.0
            )
        self._num_feeds[tenant] += 1
        try:
            await self._watch(replica, scope, receive, send, headers, principal, tenant, request_id)
        finally:
            self._num_feeds[tenant] -= 1
            if not self._num_feeds[tenant]:
                del self._num_feeds[tenant]

    def _servers(self, principal: Principal) -> Mapping[str, LiveServer]:
        found: dict[str, LiveServer] = {}
        for replica in sorted(self._fleet, key=lambda each: each.record.replica_id):
            record, models = replica.record, tuple(name for name in replica.names if principal.may_use(name))
            if replica.up and replica.store_id and models and self._geography.permits((), record.region):
                found[record.replica_id] = LiveServer(id=record.replica_id, region=record.region, models=models)
        return found

    async def _watch(
        self,
        replica: Replica,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: Mapping[bytes, bytes],
        principal: Principal,
        tenant: str,
        request_id: str,
    ) -> None:
        checks_keys = bool(self._settings.server.api_keys)
        told = forwarded_headers(
            ((name, value) for name, value in headers.items() if name in _PASSED_ON),
            request_id=request_id,
            replica_key=self._settings.replica_key,
            passes_key=self._settings.replica_key is None and not checks_keys,
        )
        hides_ids = checks_keys and not replica.tells_tenants  # the server takes all clients for one
        cut = _Cut(replica, principal, hides_ids=hides_ids) if hides_ids or principal.models is not None else None
        outgoing = Outgoing(method=scope["method"], target="/live", headers=told, body=b"")
        if checks_keys and replica.tells_tenants:
            outgoing = outgoing.with_header("x-tenant", tenant_header(tenant))
        leaving = asyncio.create_task(_left(receive))
        passing = asyncio.create_task(self._pass_on(replica, outgoing, cut, send))
        try:
            await asyncio.wait((leaving, passing), return_when=asyncio.FIRST_COMPLETED)
            if passing.done():
                passing.result()
        finally:
            for task in (leaving, passing):
                task.cancel()
            await asyncio.gather(leaving, passing, return_exceptions=True)

    async def _pass_on(self, replica: Replica, outgoing: Outgoing, cut: _Cut | None, send: Send) -> None:
        try:
            answer = await self._upstream.send(replica.record.url, outgoing)
        except ReplicaFailed as failure:
            raise NotReady(
                "The server does not answer right now. Try again in a moment.", retry_after_s=2.0
            ) from failure
        try:
            is_stream = (answer.header("content-type") or "").startswith("text/event-stream")
            cut = cut if answer.status == 200 and outgoing.method == "GET" else None
            if is_stream:
                await self._pass_stream(answer, cut, send)
                return
            try:
                body = await answer.read()
            except AnswerTorn as torn:
                raise NotReady("The server broke its answer off. Try again in a moment.", retry_after_s=2.0) from torn
            await _start(answer, send, keeps_length=cut is None)
            await send({"type": "http.response.body", "body": body if cut is None else cut.message(body)})
        finally:
            answer.close()

    async def _pass_stream(self, answer: Answer, cut: _Cut | None, send: Send) -> None:
        await _start(answer, send, keeps_length=False)
        whole = WholeEvents()

        async def pass_part(chunk: bytes) -> None:
            frames = whole.feed(chunk)
            if frames:
                part = frames if cut is None else cut.frames(frames)
                await send({"type": "http.response.body", "body": part, "more_body": True})

        await pass_part(answer.first)
        try:
            async for chunk in answer.rest():
                await pass_part(chunk)
                if self._drain.begun:
                    break
        except AnswerTorn:
            pass  # the page asks again; whole messages were passed on
        await send({"type": "http.response.body", "body": b""})


class _Cut:
    """Leaves of a server's messages what a key may see."""

    def __init__(self, replica: Replica, principal: Principal, *, hides_ids: bool) -> None:
        self._replica = replica
        self._principal = principal
        self._hides_ids = hides_ids

    def frames(self, frames: bytes) -> bytes:
        """Whole events, each with one line of data."""
        lines = [line for line in frames.splitlines() if line.startswith(_DATA)]
        return b"".join(event_frame("live", self.message(line.removeprefix(_DATA))) for line in lines)

    def message(self, body: bytes) -> bytes:
        """One message as JSON; an empty one in place of one that can't be read."""
        try:
            message = msgspec.json.decode(body, type=LiveMessage)
        except (ValueError, RecursionError):  # of a server of a later version
            message = LiveMessage(at_s=0.0, models=(), memory=())
        hidden = {model.name for model in message.models if not self._may_see(model.name)}
        return msgspec.json.encode(
            LiveMessage(
                at_s=message.at_s,
                models=tuple(self._model(model) for model in message.models if model.name not in hidden),
                memory=tuple(_device(device, hidden) for device in message.memory),
            )
        )

    def _may_see(self, model: str) -> bool:
        names = (name for name, entry in self._replica.names.items() if model in (name, entry.root))
        return any(self._principal.may_use(name) for name in names)

    def _model(self, model: LiveModel) -> LiveModel:
        if not self._hides_ids:
            return model
        return msgspec.structs.replace(model, replicas=tuple(_without_ids(replica) for replica in model.replicas))


def _without_ids(replica: LiveReplica) -> LiveReplica:
    events = (
        msgspec.structs.replace(event, request_id=None) if isinstance(event, SequenceJoined) else event
        for event in replica.events
    )
    return msgspec.structs.replace(replica, events=tuple(events))


def _device(device: LiveDevice, hidden: Collection[str]) -> LiveDevice:
    shown = [holding for holding in device.holdings if holding.holder not in hidden]
    others = [holding for holding in device.holdings if holding.holder in hidden]
    if others:
        num_bytes, rests = sum(each.num_bytes for each in others), all(each.rests for each in others)
        shown.append(LiveHolding(holder=_OTHERS, num_bytes=num_bytes, rests=rests))
    return msgspec.structs.replace(device, holdings=tuple(shown))


async def _start(answer: Answer, send: Send, *, keeps_length: bool) -> None:
    headers = [
        (name, value) for name, value in passed_back(answer.headers) if keeps_length or name != b"content-length"
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
