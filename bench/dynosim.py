"""What NVIDIA's simulator says of the same trace: the reference that `bench/routing_sim.py` compares ours with.

Run by an environment of its own, since the package is large and nothing else needs it:

    python3 -m venv ~/.cache/sixfold-dynamo && ~/.cache/sixfold-dynamo/bin/pip install ai-dynamo-runtime==1.6.1
    ~/.cache/sixfold-dynamo/bin/python bench/dynosim.py TRACE --out dynosim.json

It writes what its default engine takes for a step (so that ours can be given the same engine), and the times of the trace with
its round robin and with its KV router, several times: its router is not deterministic.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dynamo._core import run_mocker_synthetic_trace_replay, run_mocker_trace_replay

BLOCK_TOKENS = 512
PROMPTS = (16, 64, 256, 1024, 2048, 4096, 8000)
DECODE = ((1, 128), (1, 4000), (4, 1000), (16, 500), (16, 4000), (64, 1000), (64, 4000), (128, 2000))
OUTPUT_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description="Replays a Mooncake trace in DynoSim.")
    parser.add_argument("trace", type=Path, help="mooncake_conversation.csv or .csv.gz with run-length coded hash ids")
    parser.add_argument("--requests", type=int, default=12_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[4, 8, 12])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    report: dict[str, Any] = {"requests": args.requests, "engine": engine_steps(), "runs": []}
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.jsonl"
        expand(args.trace, trace, args.requests)
        for workers in args.workers:
            for mode in ("round_robin", "kv_router"):
                for _ in range(1 if mode == "round_robin" else args.repeats):
                    report["runs"].append({"workers": workers, "mode": mode, **replay(trace, workers, mode)})
                    print(report["runs"][-1], file=sys.stderr, flush=True)
                    args.out.write_text(json.dumps(report, indent=1), encoding="utf-8")


def expand(source: Path, target: Path, limit: int) -> None:
    """Writes the first requests as Mooncake's JSON lines."""
    opened = gzip.open(source, "rt", encoding="utf-8") if source.suffix == ".gz" else source.open(encoding="utf-8")
    with opened as rows, target.open("w", encoding="utf-8") as lines:
        for number, row in enumerate(csv.DictReader(rows)):
            if number == limit:
                break
            blocks: list[int] = []
            for run in row["hash_ids_rle"].split():
                first, _, last = run.partition("-")
                blocks += range(int(first), int(last or first) + 1)
            request = {
                "timestamp": int(row["timestamp_ms"]),
                "input_length": int(row["input_length"]),
                "output_length": int(row["output_length"]),
                "hash_ids": blocks,
            }
            lines.write(json.dumps(request) + "\n")


def replay(trace: Path, workers: int, mode: str) -> dict[str, Any]:
    started_s = time.monotonic()
    result = run_mocker_trace_replay(
        [str(trace)], num_workers=workers, router_mode=mode, trace_block_size=BLOCK_TOKENS, capture_per_request=True
    )
    requests = result.per_request
    ttft_s = sorted(each["ttft_ms"] / 1000 for each in requests)
    return {
        "num_requests": len(requests),
        "ttft_mean_s": sum(ttft_s) / len(ttft_s),
        "ttft_p99_s": ttft_s[int(0.99 * (len(ttft_s) - 1))],
        "e2e_mean_s": sum(each["e2e_latency_ms"] for each in requests) / len(requests) / 1000,
        "cached_share": sum(each["reused_input_tokens"] for each in requests)
        / sum(each["input_length"] for each in requests),
        "wall_s": time.monotonic() - started_s,
    }


def engine_steps() -> list[dict[str, float]]:
    """Steps of the default engine: some that only prefill, some that only decode."""
    steps: list[dict[str, float]] = []
    for prompt in PROMPTS:
        (request,) = run_mocker_synthetic_trace_replay(
            prompt, 2, 1, replay_concurrency=1, capture_per_request=True
        ).per_request
        steps.append(
            {
                "steps": 1,
                "prefill_tokens": prompt,
                "decode_rows": 0,
                "kv_tokens": 0,
                "seconds": request["ttft_ms"] / 1000,
            }
        )
    for rows, context in DECODE:
        # All prompts in one step, so that all sequences decode side by side from their first token to their last.
        requests = run_mocker_synthetic_trace_replay(
            context,
            OUTPUT_TOKENS,
            rows,
            extra_engine_args={"engine": {"max_num_batched_tokens": 1 << 20}},
            replay_concurrency=rows,
            capture_per_request=True,
        ).per_request
        first, num_steps = requests[0], OUTPUT_TOKENS - 1
        assert {each["ttft_ms"] for each in requests} == {first["ttft_ms"]}
        steps.append(
            {
                "steps": num_steps,
                "prefill_tokens": 0,
                "decode_rows": rows * num_steps,
                "kv_tokens": rows * (context * num_steps + num_steps * (num_steps + 1) / 2),
                "seconds": (first["e2e_latency_ms"] - first["ttft_ms"]) / 1000,
            }
        )
    return steps


if __name__ == "__main__":
    main()
