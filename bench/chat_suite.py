"""Streamed completions: 128 prompt tokens in, 64 tokens out, 1, 8 and 24 in flight."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from load import Call, percentile, run_closed_loop, token_times
from servers import RunningServer
from targets import Row
from tokenizers import Tokenizer

PROMPT_TOKENS = 128
OUTPUT_TOKENS = 64
CONCURRENCIES = (1, 8, 24)


def prompts(texts: Sequence[tuple[str, int]], model: Path) -> list[list[int]]:
    """Prompts of exactly 128 tokens, no two alike: no server gains from having seen one."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = [token for text, _num_tokens in texts for token in tokenizer.encode(text).ids]
    return [ids[start : start + PROMPT_TOKENS] for start in range(0, len(ids) - PROMPT_TOKENS, PROMPT_TOKENS)]


def calls(row: Row, given: Sequence[list[int]], first: int) -> Iterator[Call]:
    """Requests from prompt number ``first`` on."""
    for index in itertools.count(first):
        body = {"model": row.model, "prompt": given[index % len(given)], "max_tokens": OUTPUT_TOKENS, "stream": True}
        if not row.name.startswith(
            "transformers"
        ):  # these know no other way than to the full length, greedy, with usage
            body |= {"temperature": 0, "ignore_eos": True, "stream_options": {"include_usage": True}}
        yield Call(body=json.dumps(body).encode(), num_tokens=OUTPUT_TOKENS)


async def measure(
    server: RunningServer, row: Row, given: Sequence[list[int]], *, in_flight: int, num_requests: int, first: int
) -> dict[str, float]:
    """Runs ``num_requests`` and reads the arrival of every token."""
    run = await run_closed_loop(
        server.port, row.path, calls(row, given, first), in_flight=in_flight, min_calls=num_requests, min_s=0
    )
    streams = [token_times(answer) for _call, answer in run.answers]
    short = [stream.num_tokens for stream in streams if stream.num_tokens != OUTPUT_TOKENS]
    if short:
        raise RuntimeError(f"{row.name}: answers of {short} tokens instead of {OUTPUT_TOKENS}")
    ttft_s = [stream.ttft_s for stream in streams]
    gaps_s = [gap for stream in streams for gap in stream.gaps_s]
    return {
        "num_requests": len(streams),
        "tokens_per_s": sum(stream.num_tokens for stream in streams) / run.elapsed_s,
        "ttft_p50_ms": percentile(ttft_s, 0.5) * 1000,
        "ttft_p95_ms": percentile(ttft_s, 0.95) * 1000,
        "itl_p50_ms": percentile(gaps_s, 0.5) * 1000,
        "itl_p95_ms": percentile(gaps_s, 0.95) * 1000,
    }
