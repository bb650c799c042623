"""Threads or processes for the tokenization pool: throughput, latency beside a huge job, and what a step loop loses.

python bench/tokenization_pool.py MODEL_FOLDER    (a folder with tokenizer.json)

Every row is one pool over the same texts. The step loop stands for a model's: many small torch calls from Python, so
it wants the GIL all the time and one core.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sixfold.core.tokenization.pool import PieceDone, PiecePool, ThreadPiecePool
from sixfold.core.tokenization.processes import ProcessPiecePool

DATA = Path(__file__).parent / "data" / "embedding_texts.json"

Texts = tuple[str, ...]
TokenIds = list[list[int]]
Pool = PiecePool[Texts, TokenIds]


def make_work(tokenizer_file: str) -> Callable[[Texts], TokenIds]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(tokenizer_file)
    tokenizer.no_padding()

    def work(texts: Texts) -> TokenIds:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]

    return work


def make_pool(kind: str, num_workers: int, tokenizer_file: str) -> Pool:
    if kind == "threads":
        return ThreadPiecePool(make_work(tokenizer_file), num_workers=num_workers, max_pending_pieces=10**6)
    return ProcessPiecePool(
        functools.partial(make_work, tokenizer_file), num_workers=num_workers, max_pending_pieces=10**6
    )


class Waiter:
    """Lets the main thread wait for the last piece of a job."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.first_s: float | None = None

    def deliver(self, done: PieceDone[TokenIds]) -> None:
        if self.first_s is None:
            self.first_s = time.perf_counter()
        assert done.error is None
        if done.is_last:
            self.ended.set()


def run_job(pool: Pool, job_id: str, pieces: Sequence[Texts]) -> tuple[float, float]:
    """Seconds until the first and until the last result."""
    waiter = Waiter()
    started_s = time.perf_counter()
    pool.submit(job_id, pieces, waiter.deliver)
    waiter.ended.wait()
    assert waiter.first_s is not None
    return waiter.first_s - started_s, time.perf_counter() - started_s


class StepLoop:
    """A thread that runs small torch calls for ever and counts its steps."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self.num_steps = 0
        self._ended = False
        self._x = torch.randn(8, 384)
        self._w = torch.randn(384, 384)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended = True
        self._thread.join()

    def _run(self) -> None:
        x = self._x
        while not self._ended:
            for _call in range(50):
                x = (x @ self._w).tanh()
            self.num_steps += 1

    def steps_per_s(self, seconds: float) -> float:
        before, started_s = self.num_steps, time.perf_counter()
        time.sleep(seconds)
        return (self.num_steps - before) / (time.perf_counter() - started_s)


def chunks(texts: Sequence[str], size: int) -> list[Texts]:
    return [tuple(texts[start : start + size]) for start in range(0, len(texts), size)]


def small_job_latencies_ms(pool: Pool, texts: Sequence[str], seconds: float) -> list[float]:
    """Latencies of one-text jobs, sent one after another with a pause, for some seconds."""
    latencies = []
    ends_s = time.perf_counter() + seconds
    while time.perf_counter() < ends_s:
        _first, last = run_job(pool, f"small-{len(latencies)}", [(texts[len(latencies) % len(texts)],)])
        latencies.append(last * 1000)
        time.sleep(0.005)
    return latencies


def row(kind: str, num_workers: int, texts: Sequence[str], tokenizer_file: str, seconds: float) -> str:
    pool = make_pool(kind, num_workers, tokenizer_file)
    run_job(pool, "warm-up", chunks(texts, 64))
    rates = []
    for size in (1, 16, 64):
        best_s = min(run_job(pool, f"{size}-{n}", chunks(texts, size))[1] for n in range(3))
        rates.append(len(texts) / best_s)
    idle_ms = small_job_latencies_ms(pool, texts, seconds / 2)
    huge = chunks(list(texts) * 200, 16)
    pool.submit("huge", huge, lambda _done: None)
    beside_huge_ms = small_job_latencies_ms(pool, texts, seconds)
    pool.cancel("huge")
    loop = StepLoop()
    loop.start()
    loop.steps_per_s(0.2)
    alone = loop.steps_per_s(seconds)
    beside_loop_ms = small_job_latencies_ms(pool, texts, seconds)
    pool.submit("huge", huge, lambda _done: None)
    beside = loop.steps_per_s(seconds)
    beside_both_ms = small_job_latencies_ms(pool, texts, seconds)
    pool.cancel("huge")
    loop.stop()
    pool.close()
    cells = [f"{rate:,.0f}" for rate in rates]
    cells += [percentiles(values) for values in (idle_ms, beside_huge_ms, beside_loop_ms, beside_both_ms)]
    cells.append(f"{beside / alone:.2f}")
    return f"| {kind} | {num_workers} | {os.environ['TOKENIZERS_PARALLELISM']} | " + " | ".join(cells) + " |"


def percentiles(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} / {sorted(values)[int(len(values) * 0.95)]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each latency measurement")
    parser.add_argument("--row", nargs=2, metavar=("KIND", "WORKERS"), help="internal: one row in this process")
    args = parser.parse_args()
    tokenizer_file = str(args.model / "tokenizer.json")
    if args.row:
        texts = [text for text, _num_tokens in json.loads(DATA.read_text())]
        print(row(args.row[0], int(args.row[1]), texts, tokenizer_file, args.seconds), flush=True)
        return
    print("| pool | workers | rayon | texts/s at 1 | at 16 | at 64 a piece | one text alone, p50 / p95 ms "
          "| beside a huge job | beside a step loop | beside both | steps kept |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for parallelism in ("false", "true"):
        for kind in ("threads", "processes"):
            for num_workers in (1, 2, 4):
                command = [sys.executable, __file__, str(args.model), "--seconds", str(args.seconds)]
                subprocess.run(
                    [*command, "--row", kind, str(num_workers)],
                    env={**os.environ, "TOKENIZERS_PARALLELISM": parallelism},
                    check=True,
                )


if __name__ == "__main__":
    main()
