"""Code completion on two replicas: prefix-aware routing with caches beside round robin without.

    python bench/routing.py [--editors 4] [--completions 12] [--start 2000]

Each editor types a file of this project on and asks for a completion after every 24 characters. Two servers with one core each
hold the demo's language model twice, with its prefix cache and without, both without guessed tokens. One gateway routes by
prefix, one in turns.
All editors type at the same time, a few completions by one way and then the same by the other, another one first each time: a
ratio is one of neighbours in time, and no way computes while the other is measured. The hit rate is what the servers themselves
count (`cached_tokens`).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import report
import uvloop
from gateway import gateway_target
from load import percentile
from report import Sample
from servers import RunningServer, Target
from targets import BENCH, OFFLINE, SIXFOLD, WORK, pull_demo_models, work_folder

from sixfold.core.benchmark.client import Connection

AWARE, TURNS = "prefix-aware, with cache", "round robin, without cache"
MODEL = {AWARE: "cached", TURNS: "plain"}
KEYSTROKES = 24
COMPLETION_TOKENS = 16
BLOCK = 3
"""Completions of an editor by one way before the other's turn."""
FILES = ("core/config.py", "core/errors.py", "core/serving/call.py", "core/batching/fair_queue.py", "core/validation.py",
         "core/yaml_document.py")  # fmt: skip
COLUMNS = {"p50_ms": "p50 ms", "p95_ms": "p95 ms", "hit_rate": "cached share"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer."""

    way: str
    total_s: float
    num_prompt_tokens: int
    num_cached_tokens: int
    text: str


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editors", type=int, default=4, choices=range(1, len(FILES) + 1))
    parser.add_argument("--completions", type=int, default=12, help="an editor (default 12)")
    parser.add_argument("--start", type=int, default=2000, help="characters of the file at the first (default 2000)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    work_folder()
    model = pull_demo_models(BENCH.parent / "examples" / "demo.yaml")["chat"]
    facts: dict[str, object] = {**report.machine(), **vars(args)}
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("Two replicas need two cores, and this process may use one.")
    with ExitStack() as stack:
        servers = [stack.enter_context(RunningServer(replica(model, core), WORK)) for core in cores]
        ports = [server.port for server in servers if server.wait_ready()]
        aware = gateway_target("bench-routing-aware", ports, routing={"policy": "prefix"})
        turns = gateway_target("bench-routing-turns", ports, routing={"policy": "round_robin"})
        with RunningServer(aware, WORK) as first, RunningServer(turns, WORK) as second:
            first.wait_ready()
            second.wait_ready()
            found = uvloop.run(run({AWARE: first.port, TURNS: second.port}, args))
    samples = [sample(way, [each for each in found if each.way == way]) for way in MODEL]
    lines = ["# Routing of code completions", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    lines += [*report.table(samples, COLUMNS, {}), "", verdict(samples)]
    written = report.write(BENCH / "results", facts, samples, lines, name="routing")
    print("\n".join(lines), f"\n\nwritten: {written}", flush=True)


def replica(model: Path, core: int) -> Target:
    """One server with the model twice. Replicas with two threads each would wait for each other's cores in every layer."""
    config = WORK / f"routing-{core}.json"
    options = {"speculation": {"method": "off"}}
    models = {
        "cached": {"source": f"file:{model.resolve()}", "options": options},
        "plain": {"source": f"file:{model.resolve()}", "options": {**options, "prefix_cache": "off"}},
    }
    config.write_text(json.dumps({"models": models}))
    serve = [str(SIXFOLD), "serve", str(config), "--log-level", "warning"]
    return Target(
        name=f"routing-{core}",
        command=lambda port: ["taskset", "--cpu-list", str(core), *serve, "--port", str(port)],
        env=OFFLINE,
        ready_path="/ready",
        pausable=False,
    )


async def run(ports: dict[str, int], args: argparse.Namespace) -> list[Completion]:
    for way, port in ports.items():  # warm: both replicas of both ways
        connection = await Connection.open(port)
        for number in range(4):
            await complete(connection, way, f"def warm_up_{number}() -> None:\n" * 8)
        connection.close()
    found: list[Completion] = []
    texts = [(BENCH.parent / name).read_text() for name in FILES[: args.editors]]
    connections = {way: [await Connection.open(port) for _ in texts] for way, port in ports.items()}
    for number, block in enumerate(blocks_of(args.completions)):
        for way in list(MODEL) if number % 2 else reversed(MODEL):
            async with asyncio.TaskGroup() as group:
                for connection, text in zip(connections[way], texts, strict=True):
                    prompts = [text[: args.start + step * KEYSTROKES] for step in block]
                    group.create_task(type_on(connection, way, prompts, found))
    for connection in itertools.chain(*connections.values()):
        connection.close()
    return found


def blocks_of(count: int) -> list[range]:
    return [range(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK)]


async def type_on(connection: Connection, way: str, prompts: Sequence[str], found: list[Completion]) -> None:
    for prompt in prompts:
        found.append(await complete(connection, way, prompt))


async def complete(connection: Connection, way: str, prompt: str) -> Completion:
    body = {
        "model": MODEL[way],
        "prompt": prompt,
        "max_tokens": COMPLETION_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    started_s = time.perf_counter()
    answer = await connection.request("POST", "/v1/completions", json.dumps(body).encode())
    total_s = time.perf_counter() - started_s
    if answer.status != 200:
        raise RuntimeError(f"{way} answered {answer.status}: {answer.body[:300]!r}")
    data = json.loads(answer.body)
    usage = data["usage"]
    return Completion(
        way=way,
        total_s=total_s,
        num_prompt_tokens=usage["prompt_tokens"],
        num_cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
        text=data["choices"][0]["text"],
    )


def sample(way: str, found: Sequence[Completion]) -> Sample:
    times_ms = [1000 * each.total_s for each in found]
    cached = sum(each.num_cached_tokens for each in found) / sum(each.num_prompt_tokens for each in found)
    values = {"p50_ms": statistics.median(times_ms), "p95_ms": percentile(times_ms, 0.95), "hit_rate": cached}
    return Sample(suite="routing", workload="typed code", row=way, dtype="default", round=1, values=values)


def verdict(samples: Sequence[Sample]) -> str:
    aware, turns = (sample.values for sample in samples)
    return (
        f"Prefix-aware routing with cache is {turns['p50_ms'] / aware['p50_ms']:.2f} times as fast at p50; "
        f"{100 * aware['hit_rate']:.0f}% of the prompt tokens came from the cache."
    )


if __name__ == "__main__":
    main()
