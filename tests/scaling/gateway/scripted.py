"""Tiny replicas whose answers and faults are written down, and a real gateway before them; all in the test's own loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from sixfold.core.serving.lifecycle import Listening, serve
from sixfold.core.serving.settings import ServerSettings
from sixfold.scaling.gateway.app import Gateway
from sixfold.scaling.gateway.settings import GatewaySettings

WAIT_S = 20.0
JSON = {"content-type": "application/json"}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer: its parts are sent one after the other, then comes the end.

    Attributes:
        parts: Of the body.
        then: ``end``; ``tear`` the connection; ``stall`` until the peer leaves; ``wait`` for `ScriptedReplica.go` and end.
        chunked: Whether the length is not told.
    """

    status: int = 200
    parts: Sequence[bytes] = (b"{}",)
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)
    then: str = "end"
    chunked: bool = False


NOTHING = Reply(status=0, parts=(), then="tear")
SILENCE = Reply(status=0, parts=(), then="stall")


def events(*texts: str, then: str = "end") -> Reply:
    """A stream of events; ``end`` brings the [DONE]."""
    parts = [b"data: " + json.dumps({"text": text}).encode() + b"\n\n" for text in texts]
    if then in ("end", "wait"):
        parts.append(b"data: [DONE]\n\n")
    return Reply(parts=parts, headers={"content-type": "text/event-stream"}, then=then, chunked=True)


@dataclass
class Seen:
    """A request that a replica got."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


class ScriptedReplica:
    """A server on a free port that answers probes, and requests by `script`: in turn, then for ever the last.

    Attributes:
        seen: What it was asked, without probes.
        left: Set when a peer has left a stalled answer.
        go: Lets answers that wait end.
    """

    def __init__(self, name: str, *script: Reply, models: Sequence[str] = ("m",), role: str = "any") -> None:
        self.name = name
        self.role = role
        self.script = list(script) or [Reply(parts=(json.dumps({"by": name}).encode(),))]
        self.listing: list[dict[str, Any]] = [{"id": model, "object": "model"} for model in models]
        self.raw_listing: bytes | None = None  # sent in place of `listing`
        self.ready: tuple[int, dict[str, Any]] = (200, {"status": "ready"})
        self.seen: list[Seen] = []
        self.left = asyncio.Event()
        self.go = asyncio.Event()
        self.asked = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """Ends it as SIGKILL would: the port refuses, connections are reset."""
        assert self._server is not None
        for listener in self._server.sockets:
            asyncio.get_running_loop().remove_reader(listener.fileno())
        # What was just accepted takes some turns to come up; a server that is closed meanwhile would lose its socket.
        for turn in range(8):
            if turn == 4:
                self._server.close()
            for writer in tuple(self._writers):
                writer.transport.abort()
            await asyncio.sleep(0)

    async def wait_seen(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S), self.asked:
            await self.asked.wait_for(lambda: len(self.seen) >= count)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *lines = head.decode("latin-1").split("\r\n")
                headers = {
                    name.lower(): value for name, _colon, value in (each.partition(": ") for each in lines) if name
                }
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                method, target, _version = line.split(" ")
                await self._answer(Seen(method, target, headers, body), reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if seen.target == "/ready":
            status, state = self.ready
            return await self._send(Reply(status=status, parts=(json.dumps(state).encode(),)), reader, writer)
        if seen.target == "/v1/models":
            listing = json.dumps({"object": "list", "data": self.listing}).encode()
            return await self._send(Reply(parts=(self.raw_listing or listing,)), reader, writer)
        async with self.asked:
            self.seen.append(seen)
            self.asked.notify_all()
        reply = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        await self._send(reply, reader, writer)

    async def _send(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = b"".join(reply.parts)
        if reply.status:
            length = "transfer-encoding: chunked" if reply.chunked else f"content-length: {len(body)}"
            lines = [
                f"HTTP/1.1 {reply.status} x",
                length,
                *(f"{name}: {value}" for name, value in reply.headers.items()),
            ]
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        if reply.then == "wait":
            await writer.drain()
            await self.go.wait()
        for part in reply.parts if reply.then != "tear" or reply.chunked else (body[: len(body) // 2],):
            writer.write(b"%x\r\n%b\r\n" % (len(part), part) if reply.chunked else part)
            await writer.drain()
            await asyncio.sleep(0)
        if reply.then == "stall":
            with suppress(ConnectionError):
                assert await reader.read(1) == b""
            self.left.set()
            raise ConnectionResetError
        if reply.then == "tear":
            # What was written must have left before the reset, or the peer would never see it.
            writer.write_eof()
            raise ConnectionResetError
        if reply.chunked:
            writer.write(b"0\r\n\r\n")
        await writer.drain()


class RunningGateway:
    """A gateway that listens, and a client of it."""

    def __init__(self, gateway: Gateway, listening: Listening, session: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.listening = listening
        self.session = session

    @property
    def url(self) -> str:
        return self.listening.url

    async def ask(
        self, body: object = None, path: str = "/v1/completions", *, method: str = "POST", **headers: str
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """One request; underscores in the names of headers are dashes."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        data: object = {"model": "m", "prompt": "p"} if body is None and method == "POST" else body
        if data is not None and not isinstance(data, bytes):
            data = json.dumps(data).encode()
            given = {**JSON, **given}
        async with self.session.request(method, self.url + path, data=data, headers=given) as response:
            return response.status, await response.read(), response.headers

    async def ask_json(self, body: object = None, path: str = "/v1/completions", **more: Any) -> Any:
        status, content, _headers = await self.ask(body, path, **more)
        assert status == 200, content
        return json.loads(content)

    async def metric(self, name: str, **labels: str) -> float:
        _status, text, _headers = await self.ask(path="/metrics", method="GET")
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return 0.0


@asynccontextmanager
async def fleet(*replicas: ScriptedReplica, **settings: Any) -> AsyncGenerator[RunningGateway]:
    """Starts the replicas and a gateway before them. Unless told otherwise it probes once and then never."""
    for replica in replicas:
        await replica.start()
    settings = {
        "routing": {"policy": "round_robin"},
        "health": {"interval_s": 1000.0},
        "replicas": [{"url": replica.url, "role": replica.role} for replica in replicas],
        "server": ServerSettings(port=0, drain_timeout_s=5.0),
        **settings,
    }
    try:
        async with run_gateway(Gateway(GatewaySettings.model_validate(settings))) as running:
            yield running
    finally:
        for replica in replicas:
            await replica.kill()


@asynccontextmanager
async def run_gateway(gateway: Gateway) -> AsyncGenerator[RunningGateway]:
    """Serves until the block ends, then drains."""
    listening: asyncio.Future[Listening] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(gateway, on_listening=listening.set_result))
    await asyncio.wait((listening, serving), return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
    async with AsyncExitStack() as stack:
        timeout = aiohttp.ClientTimeout(total=WAIT_S)
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        try:
            yield RunningGateway(gateway, listening.result(), session)
        finally:
            listening.result().lifecycle.drain()
            async with asyncio.timeout(WAIT_S):
                await serving
