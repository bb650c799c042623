"""What the HTTP face costs over bare FastAPI: CPU per request and per streamed chunk, rounds of both interleaved.

Both sides run on the same uvicorn settings (uvloop, httptools) in a process each and do the same work: parse and
validate a JSON body, answer with JSON, or stream 32 SSE frames, one per turn of the event loop. Ours does it through the
whole serving layer (gate, keys, metrics, a replica's event stream). The load comes from this process.

Usage: python bench/http_overhead.py [--rounds 7] [--requests 2000] [--concurrency 32]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import uvicorn
import uvloop
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response, StreamingResponse

from sixfold.core.batching.model import ModelInfo
from sixfold.core.family import Family
from sixfold.core.messages import Finished, Increment, Request
from sixfold.core.runtime.replica import EventStream
from sixfold.core.serving import lifecycle
from sixfold.core.serving.api import Call, ModalityAPI, Route
from sixfold.core.serving.directory import ModelState
from sixfold.core.serving.server import SixfoldServer
from sixfold.core.serving.settings import ApiKeySettings, ServerSettings, hash_key
from sixfold.core.serving.sse import DONE, data_frame

NUM_CHUNKS = 32
BUDGET_REQUEST_US = 500.0
BUDGET_CHUNK_US = 50.0
KEY = "bench"


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str
    input: str
    stream: bool = False


class Answer(msgspec.Struct):
    model: str
    text: str


class Input(msgspec.Struct, frozen=True):
    text: str
    num_chunks: int


class Output(msgspec.Struct, frozen=True):
    text: str


class Snapshot:
    num_running = 0
    num_waiting = 0
    queued_units = 0
    units_per_s = 0.0
    metrics: dict[str, float] = {}  # noqa: RUF012 - never written


class EchoReplica:
    """Answers at once; a stream's increments come one per turn of the loop, as from a worker's steps."""

    info = ModelInfo()
    snapshot = Snapshot()

    def submit(self, request: Request[Any]) -> EventStream:
        stream = EventStream(lambda: None)
        loop = asyncio.get_running_loop()
        output: msgspec.Struct = Output(request.input.text)
        finished: Finished[msgspec.Struct] = Finished(request_id=request.request_id, result=output)

        def step(left: int) -> None:
            if left == 0:
                stream.push((finished,))
                return
            stream.push((Increment(request_id=request.request_id, output=output),))
            loop.call_soon(step, left - 1)

        loop.call_soon(step, request.input.num_chunks)
        return stream


class Model:
    name = "echo"
    aliases = ()
    state = ModelState.READY
    loads_on_demand = False
    back_in_s = 1.0
    info = ModelInfo()
    created_s = 0
    replicas = (EchoReplica(),)
    family = Family(
        name="echo/bench",
        summary="",
        operations=frozenset({"echo"}),
        loader="none:none",
        input_type=Input,
        output_type=Output,
        extra="none",
    )

    def enter(self) -> None:
        """It is always there."""

    def leave(self) -> None:
        """Nobody counts."""


class Models:
    ready = True
    draining = False

    def find(self, name: str) -> Model | None:
        return MODEL if name == MODEL.name else None

    def models(self) -> Sequence[Model]:
        return (MODEL,)


MODEL = Model()


class EchoAPI(ModalityAPI):  # type: ignore[misc]  # litserve ships no types
    modality = "echo"

    def routes(self) -> Sequence[Route]:
        return (Route(path="/v1/echo", endpoint=self.echo, body=Body),)

    async def echo(self, call: Call) -> Response:
        body = await call.json(Body)
        model = await call.model(body.model, "echo")
        if not body.stream:
            done = await call.run(model, Input(body.input, 0))
            return call.respond(Answer(model.name, done.result.text))
        running = await call.start(model, Input(body.input, NUM_CHUNKS))

        async def frames() -> AsyncIterator[bytes]:
            async for events in running:
                for event in events:
                    if isinstance(event, Increment):
                        yield data_frame(msgspec.json.encode(event.output))
            yield DONE

        return call.stream_sse(frames())


def bare_app() -> FastAPI:
    app = FastAPI()

    @app.post("/v1/echo")
    async def echo(body: Body) -> Response:
        if not body.stream:
            await asyncio.sleep(0)
            return Response(msgspec.json.encode(Answer(body.model, body.input)), media_type="application/json")

        async def frames() -> AsyncIterator[bytes]:
            output = Output(body.input)
            for _ in range(NUM_CHUNKS):
                await asyncio.sleep(0)
                yield data_frame(msgspec.json.encode(output))
            yield DONE

        return StreamingResponse(frames(), media_type="text/event-stream")

    return app


def answer_cpu_questions() -> None:
    """Answers each line on stdin with this process's CPU seconds."""

    def answer() -> None:
        if not sys.stdin.readline():
            os._exit(0)
        print(time.process_time(), flush=True)

    asyncio.get_running_loop().add_reader(sys.stdin, answer)


def serve_ours() -> None:
    settings = ServerSettings(port=0, api_keys=(ApiKeySettings(name="bench", sha256=hash_key(KEY)),))

    def tell(listening: lifecycle.Listening) -> None:
        answer_cpu_questions()
        print(listening.port, flush=True)

    sys.exit(lifecycle.run(SixfoldServer([EchoAPI()], Models(), settings), on_listening=tell))


def serve_bare() -> None:
    async def main() -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        answer_cpu_questions()
        print(listener.getsockname()[1], flush=True)
        config = uvicorn.Config(
            bare_app(), http="httptools", log_config=None, access_log=False, proxy_headers=False, server_header=False
        )
        await uvicorn.Server(config).serve(sockets=[listener])

    uvloop.run(main())


class Side:
    """One server under load."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.port = int(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def cpu_s(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._line())

    async def load(self, *, stream: bool, num_requests: int, concurrency: int) -> tuple[float, float]:
        """CPU and wall seconds per request."""
        body = msgspec.json.encode(
            {"model": "echo", "input": "fifty bytes of text, more or less, are here", "stream": stream}
        )
        head = (
            f"POST /v1/echo HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {KEY}\r\naccept: */*\r\n"
            f"user-agent: bench\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        message = head.encode() + body
        left = num_requests

        async def client() -> None:
            nonlocal left
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            while left > 0:
                left -= 1
                writer.write(message)
                header = await reader.readuntil(b"\r\n\r\n")
                assert header.startswith(b"HTTP/1.1 200"), header
                if stream:
                    await reader.readuntil(b"\r\n0\r\n\r\n")
                else:
                    at = header.index(b"content-length: ") + 16
                    await reader.readexactly(int(header[at : header.index(b"\r", at)]))
            writer.close()
            await writer.wait_closed()

        cpu_s, wall_s = self.cpu_s(), time.perf_counter()
        await asyncio.gather(*(client() for _ in range(concurrency)))
        return (self.cpu_s() - cpu_s) / num_requests, (time.perf_counter() - wall_s) / num_requests


async def measure(num_rounds: int, num_requests: int, concurrency: int) -> None:
    sides = [Side("bare"), Side("ours")]
    found: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for stream in (False, True):
        count = num_requests // 10 if stream else num_requests
        for turn in range(num_rounds + 1):
            for side in sides if turn % 2 else reversed(sides):
                one = await side.load(stream=stream, num_requests=count, concurrency=concurrency)
                if turn:  # the first round warms up
                    found.setdefault((side.name, stream), []).append(one)
    for side in sides:
        side.process.terminate()
        side.process.wait()
    cpu_us = {key: statistics.median(cpu for cpu, _ in runs) * 1e6 for key, runs in found.items()}
    rate = {key: 1 / statistics.median(wall for _, wall in runs) for key, runs in found.items()}
    print(f"{'':10}{'us CPU/request':>16}{'requests/s':>12}{'us CPU/stream':>16}{'us CPU/chunk':>14}{'chunks/s':>10}")
    chunk_us = {}
    for name in ("bare", "ours"):
        once, streamed = cpu_us[name, False], cpu_us[name, True]
        chunk_us[name] = (streamed - once) / NUM_CHUNKS
        print(
            f"{name:10}{once:16.0f}{rate[name, False]:12.0f}{streamed:16.0f}{chunk_us[name]:14.1f}"
            f"{rate[name, True] * NUM_CHUNKS:10.0f}"
        )
    request_us = cpu_us["ours", False] - cpu_us["bare", False]
    print(f"over bare FastAPI: {request_us:+.0f} us a request (budget {BUDGET_REQUEST_US:.0f}),", end=" ")
    print(f"{chunk_us['ours'] - chunk_us['bare']:+.1f} us a chunk (budget {BUDGET_CHUNK_US:.0f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", choices=("bare", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=32)
    given = parser.parse_args()
    if given.serve == "ours":
        serve_ours()
    elif given.serve == "bare":
        serve_bare()
    else:
        uvloop.run(measure(given.rounds, given.requests, given.concurrency))


if __name__ == "__main__":
    main()
