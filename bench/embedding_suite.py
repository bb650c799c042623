"""Embeddings over HTTP: one text a request with 64 in flight, and 64 texts a request with 4 in flight."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from load import Call, Run, percentile, run_closed_loop
from servers import RunningServer
from targets import Row


@dataclass(frozen=True, slots=True)
class Workload:
    """How the texts are sent."""

    name: str
    texts_per_request: int
    in_flight: int


SINGLES = Workload("one text a request, 64 in flight", 1, 64)
LISTS = Workload("64 texts a request, 4 in flight", 64, 4)


def calls(texts: Sequence[tuple[str, int]], row: Row, workload: Workload) -> Iterator[Call]:
    """The same texts in the same order, over and over."""
    size = workload.texts_per_request
    made: list[Call] = []
    for start in range(0, len(texts) - size + 1, size):
        part = texts[start : start + size]
        given = [text for text, _num_tokens in part]
        body = json.dumps({"model": row.model, "input": given if size > 1 else given[0]}).encode()
        made.append(Call(body=body, num_texts=size, num_tokens=sum(num_tokens for _text, num_tokens in part)))
    return itertools.cycle(made)


async def measure(
    server: RunningServer, row: Row, workload: Workload, texts: Sequence[tuple[str, int]], *, min_s: float
) -> dict[str, float]:
    """Runs every text at least once and for at least ``min_s`` seconds."""
    run = await run_closed_loop(
        server.port,
        row.path,
        calls(texts, row, workload),
        in_flight=workload.in_flight,
        min_calls=len(texts) // workload.texts_per_request,
        min_s=min_s,
    )
    check_vectors(run, row)
    latencies_s = [answer.ended_s - answer.started_s for _call, answer in run.answers]
    return {
        "num_requests": len(run.answers),
        "requests_per_s": len(run.answers) / run.elapsed_s,
        "texts_per_s": sum(call.num_texts for call, _answer in run.answers) / run.elapsed_s,
        "tokens_per_s": sum(call.num_tokens for call, _answer in run.answers) / run.elapsed_s,
        "p50_ms": percentile(latencies_s, 0.5) * 1000,
        "p95_ms": percentile(latencies_s, 0.95) * 1000,
    }


def check_vectors(run: Run, row: Row) -> None:
    """A fast wrong answer is no answer: each request has as many unit vectors as texts.

    Raises:
        RuntimeError: It has not.
    """
    for call, answer in run.answers[:: max(1, len(run.answers) // 8)]:
        data = json.loads(answer.body)["data"]
        vector = data[-1]["embedding"]
        norm = sum(value * value for value in vector) ** 0.5
        if len(data) != call.num_texts or abs(norm - 1) > 0.01:
            raise RuntimeError(f"{row.name}: {len(data)} vectors for {call.num_texts} texts, norm {norm:.3f}")
