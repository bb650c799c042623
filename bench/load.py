"""Closed-loop load: a fixed number of requests in flight, and what came of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

from sixfold.core.benchmark.client import Answer, Connection
from sixfold.core.benchmark.outcome import read_answer
from sixfold.core.benchmark.summary import percentile as nearest_rank
from sixfold.plugins.llm.workloads import WORKLOADS

_CHAT, COMPLETIONS = WORKLOADS


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to send.

    Attributes:
        body: JSON, unless ``content_type`` says otherwise.
        num_texts: Texts in it, or 1.
        num_tokens: Work in it: input tokens of an embedding, output tokens of a completion, milliseconds of audio.
        content_type: Of the body.
    """

    body: bytes
    num_texts: int = 1
    num_tokens: int
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The answers of one closed-loop run, in order of completion."""

    elapsed_s: float
    answers: tuple[tuple[Call, Answer], ...]


async def run_closed_loop(
    port: int, path: str, calls: Iterator[Call], *, in_flight: int, min_calls: int, min_s: float
) -> Run:
    """Keeps ``in_flight`` requests under way until ``min_calls`` were sent and ``min_s`` have passed, then drains.

    Raises:
        RuntimeError: An answer was not 200.
    """
    answers: list[tuple[Call, Answer]] = []
    num_sent = 0
    connections = [await Connection.open(port) for _connection in range(in_flight)]
    started_s = time.perf_counter()

    async def keep_sending(connection: Connection) -> None:
        nonlocal num_sent
        while num_sent < min_calls or time.perf_counter() - started_s < min_s:
            num_sent += 1
            call = next(calls)
            answer = await connection.request("POST", path, call.body, call.content_type)
            if answer.status != 200:
                raise RuntimeError(f"{path} on port {port} answered {answer.status}: {answer.body[:500]!r}")
            answers.append((call, answer))

    async with asyncio.TaskGroup() as group:
        for connection in connections:
            group.create_task(keep_sending(connection))
    elapsed_s = time.perf_counter() - started_s
    for connection in connections:
        connection.close()
    return Run(elapsed_s=elapsed_s, answers=tuple(answers))


@dataclass(frozen=True, slots=True)
class TokenTimes:
    """When the tokens of one streamed completion arrived."""

    ttft_s: float
    gaps_s: tuple[float, ...]
    num_tokens: int


def token_times(answer: Answer) -> TokenTimes:
    """Reads a finished SSE completion; each event with text counts as one token for the gaps.

    Raises:
        RuntimeError: The stream ended in an error or without its usage.
    """
    outcome = read_answer(COMPLETIONS, answer, due_s=answer.started_s)
    if outcome.ttft_s is None or not outcome.num_output_tokens:
        raise RuntimeError(f"{outcome.error or 'no usage'} in the stream: {answer.body[-500:]!r}")
    return TokenTimes(outcome.ttft_s, outcome.gaps_s, outcome.num_output_tokens)


def percentile(values: list[float], fraction: float) -> float:
    """The nearest-rank percentile; the maximum when there are few values."""
    return nearest_rank(sorted(values), fraction)
