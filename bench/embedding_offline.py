"""Offline embedding throughput: Sixfold's model, sentence-transformers and the machine's matmul floor, in one run.

    python bench/embedding_offline.py --model FOLDER [--texts 600] [--rounds 3]

The floor is what the workload would take if its floating-point operations without any padding ran at the best rate that
a 2048 x 2048 x 2048 product reached in this very run. Rounds alternate between the contenders; each figure is the
median over rounds, with the best in brackets. On a machine that does other work too, trust ``--cpu-time`` (one thread,
its own processor time) and "best steps": every step's best time over the rounds, summed, against a floor that is a best
as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from sixfold.core.batching.model import Granted
from sixfold.core.family import LoadContext
from sixfold.core.messages import Request
from sixfold.core.runtime.allocator import keep_freed_memory, use_one_arena
from sixfold.plugins.embedding.loader import load
from sixfold.plugins.embedding.model import EmbeddingModel
from sixfold.plugins.embedding.options import EmbeddingOptions
from sixfold.plugins.embedding.schema import TRUNCATE_TO_LIMIT, EmbeddingInput
from sixfold.plugins.embedding.sequence import EmbeddingSequence

DATA = Path(__file__).parent / "data" / "embedding_texts.json"
GEMM_SIZE = 2048
LIBRARY_BATCH = 32


Clock = Callable[[], float]


@dataclass
class Times:
    """Seconds of one contender, a round each."""

    clock: Clock
    rounds_s: list[float] = field(default_factory=list)
    steps_s: list[list[float]] = field(default_factory=list)

    @property
    def best_steps_s(self) -> float:
        """The best time of every step, summed."""
        return sum(map(min, zip(*self.steps_s, strict=True)))


def gemm_rate(dtype: torch.dtype, clock: Clock, repeats: int = 6) -> float:
    """Best rate of a square product, in FLOP/s."""
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE).to(dtype) for _ in range(2))
    best_s = float("inf")
    for _ in range(repeats):
        start_s = clock()
        a @ b
        best_s = min(best_s, clock() - start_s)
    return 2 * GEMM_SIZE**3 / best_s


def useful_flops(num_tokens: int, config: dict[str, Any]) -> int:
    """Operations of one sequence in a BERT-like encoder, without padding."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    linear = 2 * num_tokens * (4 * width * width + 2 * width * inner)
    attention = 4 * num_tokens * num_tokens * width
    return config["num_hidden_layers"] * (linear + attention)


def steps(sequences: Iterator[EmbeddingSequence], step_tokens: int) -> Iterator[list[EmbeddingSequence]]:
    """Whole sequences in order of arrival, at most ``step_tokens`` at once."""
    batch: list[EmbeddingSequence] = []
    total = 0
    for sequence in sequences:
        if batch and total + len(sequence.token_ids) > step_tokens:
            yield batch
            batch, total = [], 0
        batch.append(sequence)
        total += len(sequence.token_ids)
    if batch:
        yield batch


def run_ours(model: EmbeddingModel, texts: Sequence[str], step_tokens: int, times: Times) -> np.ndarray[Any, Any]:
    """All texts as one request: pieces are tokenized by a thread while steps run."""
    clock = times.clock
    start_s = clock()
    wanted = EmbeddingInput(texts=tuple(texts), truncate_tokens=TRUNCATE_TO_LIMIT)
    request = Request(request_id="bench", input=wanted, arrived_s=0.0)
    done: list[EmbeddingSequence] = []
    steps_s: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        pieces = [pool.submit(model.prepare, request, piece) for piece in model.split(request)]
        prepared = (sequence for piece in pieces for sequence in piece.result())
        for batch in steps(prepared, step_tokens):
            step_start_s = clock()
            model.step([Granted(sequence, len(sequence.token_ids)) for sequence in batch])
            steps_s.append(clock() - step_start_s)
            done += batch
    result = model.finish(request, done).result
    times.rounds_s.append(clock() - start_s)
    times.steps_s.append(steps_s)
    return np.frombuffer(result.vectors, "<f4").reshape(-1, result.dimension)


def run_library(library: SentenceTransformer, texts: Sequence[str], times: Times) -> np.ndarray[Any, Any]:
    """sentence-transformers' own bulk call; it sorts by length by itself."""
    clock = times.clock
    start_s = clock()
    vectors = library.encode(list(texts), batch_size=LIBRARY_BATCH, show_progress_bar=False)
    times.rounds_s.append(clock() - start_s)
    return np.asarray(vectors)


def measure(dtype: str, options: argparse.Namespace, texts: Sequence[str]) -> None:
    """Runs both contenders in turn and prints their lines."""
    torch_dtype = getattr(torch, dtype)
    clock = time.process_time if options.cpu_time else time.perf_counter
    context = LoadContext(
        model_name="bench",
        path=options.model,
        device="cpu",
        num_threads=options.threads,
        options=EmbeddingOptions(dtype=dtype),
    )
    model = load(context)
    model.warm_up()
    library = SentenceTransformer(str(options.model), device="cpu", model_kwargs={"dtype": torch_dtype})
    ours, theirs, rate = Times(clock), Times(clock), 0.0
    mine = stock = np.empty(0)
    for _ in range(options.rounds):
        rate = max(rate, gemm_rate(torch_dtype, clock))
        mine = run_ours(model, texts, options.step_tokens, ours)
        rate = max(rate, gemm_rate(torch_dtype, clock))
        stock = run_library(library, texts, theirs)
    config = json.loads((options.model / "config.json").read_text())
    request = Request(
        request_id="count",
        input=EmbeddingInput(texts=tuple(texts), truncate_tokens=TRUNCATE_TO_LIMIT),
        arrived_s=0.0,
    )
    lengths = [len(s.token_ids) for piece in model.split(request) for s in model.prepare(request, piece)]
    flops = sum(useful_flops(length, config) for length in lengths)
    floor_s = flops / rate
    cosine = (mine * stock).sum(axis=1) / np.linalg.norm(mine, axis=1) / np.linalg.norm(stock, axis=1)
    print(
        f"\n{dtype}: {len(texts)} texts, {sum(lengths)} tokens, {model.info.details['execution']}, {options.threads} threads"
    )
    print(f"  floor at {rate / 1e9:.0f} GFLOP/s        {len(texts) / floor_s:7.0f} texts/s")
    for name, times in (("sixfold", ours), ("sentence-transformers", theirs)):
        median_s, best_s = statistics.median(times.rounds_s), min(times.rounds_s)
        print(
            f"  {name:24} {len(texts) / median_s:7.0f} texts/s ({len(texts) / best_s:.0f})   "
            f"{floor_s / median_s:4.0%} of the floor ({floor_s / best_s:.0%})"
        )
    print(
        f"  sixfold, best steps      {len(texts) / ours.best_steps_s:7.0f} texts/s          "
        f"{floor_s / ours.best_steps_s:4.0%} of the floor"
    )
    ratio = statistics.median(b / a for a, b in zip(ours.rounds_s, theirs.rounds_s, strict=True))
    print(f"  sixfold / sentence-transformers  x{ratio:.2f}   least cosine between them {cosine.min():.6f}")


def main() -> None:
    """Parses the command line and measures both types."""
    use_one_arena()
    keep_freed_memory()  # as a worker process does; the library gains by it as well
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a BERT-like sentence-transformers model")
    parser.add_argument("--texts", type=int, default=600, help="first texts of the workload (2,000 in all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="processor time of one thread instead of wall time")
    parser.add_argument("--step-tokens", type=int, default=4096)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    options = parser.parse_args()
    if options.cpu_time:
        options.threads = 1
        torch.set_num_threads(1)
    texts = [text for text, _num_tokens in json.loads(DATA.read_text())][: options.texts]
    for dtype in options.dtypes:
        measure(dtype, options, texts)


if __name__ == "__main__":
    main()
