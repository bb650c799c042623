"""Steady streams, and a burst of long prompts in their middle, by one client over HTTP; part of multi.py."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_TIMEOUT_S = 90.0
_DONE = b"data: [DONE]"


@dataclass(frozen=True, kw_only=True)
class Burst:
    """What is asked for.

    Attributes:
        streams: Steady ones.
        stream_prompt: Tokens of each of their prompts.
        stream_tokens: Of each of their answers.
        lead_s: Between their start and the burst.
        prompts: Tokens of each prompt of the burst.
        tokens: Of each of its answers.
    """

    streams: int
    stream_prompt: int
    stream_tokens: int
    lead_s: float
    prompts: tuple[int, ...]
    tokens: int

    @property
    def longest(self) -> int:
        """Tokens of the longest request."""
        return max(self.stream_prompt + self.stream_tokens, max(self.prompts) + self.tokens)


async def run_burst(
    port: int, path: str, steady: Sequence[dict[str, Any]], burst: Sequence[dict[str, Any]], lead_s: float
) -> dict[str, Any]:
    """Times between chunks of the steady streams before and during the burst, and to the first chunk of the burst's answers.

    A chunk is what one read of the socket brought of one stream: a token, or a few that came together. During the burst means
    from its start until the last of its answers begins.
    """
    from sixfold.core.benchmark.client import Answer, Connection

    async def ask(body: dict[str, Any]) -> Answer:
        connection = await Connection.open(port)
        try:
            return await connection.request("POST", path, json.dumps(body).encode())
        finally:
            connection.close()

    async with asyncio.timeout(_TIMEOUT_S):
        running = [asyncio.create_task(ask(body)) for body in steady]
        await asyncio.sleep(lead_s)
        answers = await asyncio.gather(*(ask(body) for body in burst))
        streams = await asyncio.gather(*running)
    for answer in (*streams, *answers):
        if answer.status != 200 or _DONE not in answer.body:
            raise RuntimeError(f"answered {answer.status}: {answer.body[-500:]!r}")
    began_s = min(answer.started_s for answer in answers)
    firsts = sorted(answer.parts[0][0] - answer.started_s for answer in answers)
    ended_s = max(answer.parts[0][0] for answer in answers)
    gaps = [(after, after - before) for times in map(_times, streams) for before, after in itertools.pairwise(times)]
    warm_s = max(times[0] for times in map(_times, streams))
    before = [gap for at_s, gap in gaps if warm_s < at_s < began_s]
    during = [gap for at_s, gap in gaps if began_s <= at_s <= ended_s]
    after = [gap for at_s, gap in gaps if at_s > ended_s]
    return {
        "itl_before_ms": _percentiles(before),
        "itl_during_ms": _percentiles(during),
        "itl_after_ms": _percentiles(after),
        "streams_left": sum(_times(stream)[-1] > ended_s for stream in streams),
        "burst_ttft_ms": _percentiles(firsts),
        "burst_s": ended_s - began_s,
        "tokens_a_chunk": _num_events(streams) / sum(len(stream.parts) for stream in streams),
        "texts": [_text(answer.body) for answer in (*streams, *answers)],
    }


def _times(answer: Any) -> list[float]:
    return [at_s for at_s, part in answer.parts if part.strip() != _DONE]


def _num_events(answers: Sequence[Any]) -> int:
    return sum(answer.body.count(b"data: {") for answer in answers)


def _text(body: bytes) -> str:
    events = (line[6:] for line in body.splitlines() if line.startswith(b"data: {"))
    return "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(1e3 * value for value in values)
    if not ordered:
        return {"count": 0}
    at = {share: round(ordered[int(share * (len(ordered) - 1))], 2) for share in (0.5, 0.95, 0.99)}
    return {"p50": at[0.5], "p95": at[0.95], "p99": at[0.99], "max": round(ordered[-1], 2), "count": len(ordered)}
