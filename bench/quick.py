"""Sixfold beside its peers, in one run, over HTTP: `make bench-quick`. bench/README.md tells how to read it."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import chat_suite
import embedding_suite
import report
import uvloop
from report import Sample
from servers import OtherLoad, RunningServer, Target, undisturbed
from targets import BENCH, Row, chat_rows, embedding_rows, install_infinity, pull_demo_models, work_folder

SUITES = ("embedding", "chat", "http", "floor")
LITSERVE = "sentence-transformers on LitServe"
CONTINUOUS_BATCHING = "transformers continuous batching"
MAX_TRIES = 3
"""Of a measurement that other load disturbs."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="interleaved rounds; tables show medians (default 2)")
    parser.add_argument("--num-texts", type=int, default=384, help="texts of an embedding round (default 384)")
    parser.add_argument("--min-s", type=float, default=5.0, help="least seconds of an embedding measurement")
    parser.add_argument("--only", action="append", choices=SUITES, help="run this part; may be repeated")
    parser.add_argument("--row", action="append", help="run only servers whose name contains this; may be repeated")
    parser.add_argument("--chat-dtype", action="append", choices=("bfloat16", "float32"), help="default bfloat16")
    parser.add_argument("--embedding-path", type=Path, help="model folder instead of the demo model")
    parser.add_argument("--chat-path", type=Path, help="model folder instead of the demo model")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # Servers are in sessions of their own, so nothing but this process ends them: SIGTERM must unwind as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda _signum, _frame: sys.exit(143))
    lock = (work_folder() / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("Another run of this benchmark is under way: they would measure each other. Wait for it to end.")
    started_s = time.monotonic()
    facts: dict[str, object] = {**report.machine(), "arguments": sys.argv[1:]}
    if args.embedding_path is None or args.chat_path is None:
        models = pull_demo_models(BENCH.parent / "examples" / "demo.yaml")
        args.embedding_path = args.embedding_path or models["embed"]
        args.chat_path = args.chat_path or models["chat"]
    parts = args.only or SUITES
    samples: list[Sample] = []
    lines = ["# Sixfold beside its peers", "", *(f"- {name}: {value}" for name, value in facts.items())]
    texts = [tuple(pair) for pair in json.loads((BENCH / "data" / "embedding_texts.json").read_text())]
    if "embedding" in parts:
        samples += uvloop.run(run_embedding(args, texts))
        lines += embedding_lines(samples)
        report.write(BENCH / "results", facts, samples, lines)  # what is measured stays, whatever comes after
    if "chat" in parts:
        samples += uvloop.run(run_chat(args, texts))
        lines += chat_lines(samples)
        report.write(BENCH / "results", facts, samples, lines)
    if "http" in parts:
        lines += script_lines("HTTP overhead", "http_overhead.py")
    if "floor" in parts:
        lines += script_lines(
            "Embedding offline, beside the floor", "embedding_offline.py", "--model", str(args.embedding_path)
        )
    facts["seconds"] = round(time.monotonic() - started_s)
    lines += ["", f"Took {facts['seconds']} s."]
    print("\n".join(lines))
    print(f"\nwritten: {report.write(BENCH / 'results', facts, samples, lines)}")


async def run_embedding(args: argparse.Namespace, texts: Sequence[tuple[str, int]]) -> list[Sample]:
    rows = wanted(args, embedding_rows(args.embedding_path, ("float32", "bfloat16")))
    if any(row.target.name == "infinity" for row in rows):
        install_infinity()
    texts = texts[: args.num_texts]
    samples: list[Sample] = []
    with running(rows) as servers:
        for row in rows:
            with only(servers, row) as server:  # every length once, so that no round pays for first shapes
                await embedding_suite.measure(server, row, embedding_suite.LISTS, texts[:128], min_s=0)
        for round_index in range(args.rounds):
            for workload in (embedding_suite.SINGLES, embedding_suite.LISTS):
                for row in rotated(rows, round_index):
                    with only(servers, row) as server:
                        other = OtherLoad(server)
                        values = await embedding_suite.measure(server, row, workload, texts, min_s=args.min_s)
                        values["other_load"] = other.share()
                    samples.append(sample("embedding", workload.name, row, round_index, values))
    return samples


async def run_chat(args: argparse.Namespace, texts: Sequence[tuple[str, int]]) -> list[Sample]:
    rows = wanted(args, chat_rows(args.chat_path, tuple(args.chat_dtype or ["bfloat16"])))
    return await run_rows(rows, chat_suite.prompts(texts, args.chat_path), rounds=args.rounds)


async def run_rows(rows: Sequence[Row], given: Sequence[list[int]], *, rounds: int) -> list[Sample]:
    """Completions on all rows, interleaved."""
    samples: list[Sample] = []
    next_prompt = 0
    with running(rows) as servers:
        for row in rows:
            with only(servers, row) as server:
                await chat_suite.measure(server, row, given, in_flight=2, num_requests=2, first=next_prompt)
        next_prompt += 2
        for round_index in range(rounds):
            for in_flight in chat_suite.CONCURRENCIES:
                num_requests = max(2, in_flight)
                for row in rotated(rows, round_index):
                    if row.is_slow and (in_flight > 8 or (in_flight > 1 and round_index > 0)):
                        continue  # one by one, more in flight changes its waiting time and nothing else
                    with only(servers, row) as server:
                        # Another try takes other prompts, which this server has not seen either.
                        measurements = [
                            partial(
                                chat_suite.measure,
                                server,
                                row,
                                given,
                                in_flight=in_flight,
                                num_requests=num_requests,
                                first=next_prompt + number * num_requests,
                            )
                            for number in range(MAX_TRIES)
                        ]
                        values = await undisturbed(server, measurements)
                    samples.append(sample("chat", f"{in_flight} in flight", row, round_index, values))
                next_prompt += MAX_TRIES * num_requests
    return samples


def sample(suite: str, workload: str, row: Row, round_index: int, values: Mapping[str, float]) -> Sample:
    print(
        f"[{suite}, round {round_index + 1}, {workload}] {row.name} {row.dtype}: "
        + ", ".join(f"{name} {value:,.2f}" for name, value in values.items()),
        flush=True,
    )
    return Sample(suite=suite, workload=workload, row=row.name, dtype=row.dtype, round=round_index, values=dict(values))


def wanted(args: argparse.Namespace, rows: Sequence[Row]) -> tuple[Row, ...]:
    return tuple(row for row in rows if not args.row or any(part.lower() in row.name.lower() for part in args.row))


def rotated(rows: Sequence[Row], by: int) -> Sequence[Row]:
    """Another row goes first in each round, so that a drift of the machine hits none always."""
    by %= len(rows)
    return (*rows[by:], *rows[:by])


@contextlib.contextmanager
def running(rows: Sequence[Row]) -> Iterator[dict[str, RunningServer]]:
    """Every server of the rows, started one after another and paused."""
    targets: dict[str, Target] = {row.target.name: row.target for row in rows}
    servers: dict[str, RunningServer] = {}
    with contextlib.ExitStack() as stack:
        for name, target in targets.items():
            servers[name] = stack.enter_context(RunningServer(target, work_folder() / "logs"))
            print(f"{name} is ready after {servers[name].wait_ready():.0f} s", flush=True)
            servers[name].pause()
        for name, cpu in idle_cpu(servers).items():
            print(f"{name}, idle, takes {cpu:.1%} of a core", flush=True)
        yield servers


def idle_cpu(servers: Mapping[str, RunningServer], seconds: float = 2.0) -> dict[str, float]:
    """Share of a core that each server that is never paused takes from the others' measurements."""
    never_paused = {name: server for name, server in servers.items() if not server.target.pausable}
    before = {name: server.cpu_s() for name, server in never_paused.items()}
    time.sleep(seconds)
    return {name: (server.cpu_s() - before[name]) / seconds for name, server in never_paused.items()}


@contextlib.contextmanager
def only(servers: Mapping[str, RunningServer], row: Row) -> Iterator[RunningServer]:
    """The row's server runs, the others are paused."""
    server = servers[row.target.name]
    server.resume()
    yield server
    server.pause()


def embedding_lines(samples: Sequence[Sample]) -> list[str]:
    lines: list[str] = []
    plain: Callable[[Sample], bool] = lambda one: (one.row, one.dtype) == (LITSERVE, "float32")  # noqa: E731
    ratios = {
        "throughput / plain LitServe float32": ("tokens_per_s", plain),
        "p95 / plain LitServe float32": ("p95_ms", plain),
        "throughput / infinity": ("tokens_per_s", lambda one: one.row.startswith("infinity")),
    }
    for workload in (embedding_suite.SINGLES, embedding_suite.LISTS):
        mine = [one for one in samples if one.workload == workload.name]
        lines += ["", f"## Embeddings: {workload.name}", "", *report.table(mine, report.EMBEDDING_COLUMNS, ratios)]
    return lines


def chat_lines(samples: Sequence[Sample], *, by_dtype: bool = True) -> list[str]:
    lines: list[str] = []
    for in_flight in chat_suite.CONCURRENCIES:
        mine = [one for one in samples if one.suite == "chat" and one.workload == f"{in_flight} in flight"]
        for dtype in dict.fromkeys(one.dtype for one in mine) if by_dtype else [None]:
            base: Callable[[Sample], bool] = lambda one: one.row == CONTINUOUS_BATCHING  # noqa: E731
            ratios = {"throughput / continuous batching": ("tokens_per_s", base)}
            ours = [one for one in mine if dtype in (None, one.dtype)]
            title = (
                f"## Completions: {chat_suite.PROMPT_TOKENS} in, {chat_suite.OUTPUT_TOKENS} out, {in_flight} in flight"
            )
            lines += ["", title, "", *report.table(ours, report.CHAT_COLUMNS, ratios)]
    return lines


def script_lines(title: str, script: str, *arguments: str) -> list[str]:
    """Runs another benchmark and takes what it prints."""
    path = BENCH / script
    if not path.exists():
        return ["", f"## {title}", "", f"{script} is missing."]
    print(f"running {script}", flush=True)
    done = subprocess.run([sys.executable, str(path), *arguments], capture_output=True, text=True, check=False)
    failure = f"failed: {done.stderr[-1000:]}" if done.returncode else ""
    return ["", f"## {title}", "", "```", *done.stdout.strip().splitlines(), "```", failure]


if __name__ == "__main__":
    main()
