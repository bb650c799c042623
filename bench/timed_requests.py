"""Sends streamed completions of exact lengths to a server on this machine, and notes when their first and last tokens came."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

from sixfold.core.benchmark.client import Answer, Connection
from sixfold.scaling.sim.request import TraceRequest

TOKENS = (1000, 30_000)
"""Prompts are random token ids in this range: their length is exact, and no two share a prefix by chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One measured request.

    Attributes:
        sent_s: When, by `time.perf_counter` or from the start of its workload.
        prompt_tokens: Length of the prompt.
        output_tokens: Length of the answer.
        first_s: From then to the first token.
        last_s: To the last.
        cached_tokens: Tokens of the prompt that the server found computed; -1 where it did not say.
    """

    sent_s: float
    prompt_tokens: int
    output_tokens: int
    first_s: float
    last_s: float
    cached_tokens: int = -1

    @property
    def row(self) -> tuple[float, ...]:
        """Its fields in order, short enough for a file of thousands."""
        return tuple(round(value, 5) for value in astuple(self))

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> Timed:
        """Undoes `row`."""
        return cls(**dict(zip(cls.__slots__, row, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests that arrive at random, of lengths between two bounds."""

    name: str
    rate_per_s: float
    prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]


def random_tokens(draws: random.Random, count: int) -> list[int]:
    """Of a prompt."""
    return [draws.randrange(*TOKENS) for _ in range(count)]


def request_body(prompt: Sequence[int], output_tokens: int) -> bytes:
    """A completion that is as long as it is asked for."""
    body = {
        "model": "chat",
        "prompt": list(prompt),
        "max_tokens": output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(body).encode()


async def send(port: int, prompt: Sequence[int], output_tokens: int) -> Timed:
    """Sends one request.

    Raises:
        RuntimeError: It was not answered with text.
    """
    connection = await Connection.open(port)
    try:
        answer = await connection.request("POST", "/v1/completions", request_body(prompt, output_tokens))
    finally:
        connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {answer.body[:300]!r}")
    times_s = [at_s for at_s, part in answer.parts if b'"text"' in part]
    if not times_s:
        raise RuntimeError(f"an answer without text: {answer.body[:300]!r}")
    return Timed(
        sent_s=answer.started_s,
        prompt_tokens=len(prompt),
        output_tokens=output_tokens,
        first_s=times_s[0] - answer.started_s,
        last_s=times_s[-1] - answer.started_s,
        cached_tokens=_cached_tokens(answer),
    )


def _cached_tokens(answer: Answer) -> int:
    for line in reversed(answer.body.splitlines()):
        if line.startswith(b"data: {") and b'"cached_tokens"' in line:
            return int(json.loads(line[6:])["usage"]["prompt_tokens_details"]["cached_tokens"])
    return -1


async def side_by_side(port: int, shapes: Sequence[tuple[int, int]], draws: random.Random) -> list[Timed]:
    """Requests of these prompts' and answers' lengths, all at once."""
    prompts = [random_tokens(draws, prompt) for prompt, _ in shapes]
    pairs = zip(prompts, shapes, strict=True)
    return list(await asyncio.gather(*(send(port, prompt, output) for prompt, (_, output) in pairs)))


async def at_their_times(
    requests: Sequence[tuple[float, Callable[[], Awaitable[Timed]]]],
) -> list[Timed]:
    """Sends each at its time from now on, whether earlier ones are answered or not; their times are from now on, too."""
    start_s = time.perf_counter()
    tasks: list[asyncio.Future[Timed]] = []
    for at_s, make in requests:
        await asyncio.sleep(max(0.0, start_s + at_s - time.perf_counter()))
        tasks.append(asyncio.ensure_future(make()))
    found = await asyncio.gather(*tasks)
    return [replace(each, sent_s=each.sent_s - start_s) for each in found]


def as_trace(measured: Sequence[Timed]) -> list[TraceRequest]:
    """The same requests for a simulation."""
    found = [
        TraceRequest(arrived_s=each.sent_s, prompt_tokens=each.prompt_tokens, output_tokens=each.output_tokens)
        for each in measured
    ]
    return sorted(found, key=lambda each: each.arrived_s)
