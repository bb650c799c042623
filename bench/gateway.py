"""What the gateway adds to a request: the same server asked directly and through the gateway, one call after the other.

    python bench/gateway.py [--calls 400] [--rounds 5]

One server of the demo's embedding model, one gateway before it, one client. In each round both ways are measured with 1 and 16
requests in flight, another way first each time; with 1 in flight the calls alternate one by one, so that a difference is one of
neighbours in time.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import report
import uvloop
from load import percentile
from report import Sample
from servers import RunningServer, Target
from targets import BENCH, OFFLINE, SIXFOLD, WORK, pull_demo_models, sixfold, work_folder

from sixfold.core.benchmark.client import Connection

DIRECT, THROUGH = "direct", "through the gateway"
PATH = "/v1/embeddings"
COLUMNS = {"p50_ms": "p50 ms", "p95_ms": "p95 ms", "requests_per_s": "requests/s"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=400, help="calls a way, a round and a concurrency (default 400)")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    work_folder()
    model = pull_demo_models(BENCH.parent / "examples" / "demo.yaml")["embed"]
    facts: dict[str, object] = {**report.machine(), "calls": args.calls, "rounds": args.rounds}
    with RunningServer(sixfold("gateway-replica", model, ("float32",)), WORK) as server:
        server.wait_ready()
        with RunningServer(gateway_target("bench-gateway", [server.port]), WORK) as gateway:
            gateway.wait_ready()
            ports = {DIRECT: server.port, THROUGH: gateway.port}
            samples = uvloop.run(run(ports, args.calls, args.rounds))
    lines = ["# What the gateway adds", "", *(f"- {name}: {value}" for name, value in facts.items())]
    for workload in dict.fromkeys(sample.workload for sample in samples):
        of_workload = [sample for sample in samples if sample.workload == workload]
        lines += ["", f"## {workload}", *report.table(of_workload, COLUMNS, {}), "", added(of_workload)]
    written = report.write(BENCH / "results", facts, samples, lines, name="gateway")
    print("\n".join(lines), f"\n\nwritten: {written}", flush=True)


def gateway_target(name: str, ports: Sequence[int], **settings: object) -> Target:
    """A gateway to servers of this machine."""
    config: Path = WORK / f"{name}.json"
    config.write_text(json.dumps({"replicas": [f"http://127.0.0.1:{port}" for port in ports], **settings}))
    return Target(
        name=name,
        command=lambda port: [str(SIXFOLD), "gateway", str(config), "--port", str(port), "--log-level", "warning"],
        env=OFFLINE,
        ready_path="/ready",
        pausable=False,
    )


async def run(ports: dict[str, int], num_calls: int, num_rounds: int) -> list[Sample]:
    samples: list[Sample] = []
    for number in range(num_rounds + 1):  # the first warms up
        order = list(ports) if number % 2 else list(reversed(ports))
        found = await alternate(ports, order, num_calls)
        for way in order:
            found[way, 16] = await together(ports[way], num_calls, 16)
        if number:
            samples += [
                Sample(
                    suite="gateway", workload=f"{in_flight} in flight", row=way, dtype="float32", round=number,
                    values={
                        "p50_ms": 1000 * statistics.median(times_s),
                        "p95_ms": 1000 * percentile(times_s, 0.95),
                        "requests_per_s": in_flight * len(times_s) / sum(times_s),
                    },
                )
                for (way, in_flight), times_s in found.items()
            ]  # fmt: skip
    return samples


async def alternate(ports: dict[str, int], order: Sequence[str], num_calls: int) -> dict[tuple[str, int], list[float]]:
    """One call in flight, now this way and now the other."""
    connections = {way: await Connection.open(port) for way, port in ports.items()}
    found: dict[tuple[str, int], list[float]] = {(way, 1): [] for way in order}
    for number in range(num_calls):
        for way in order if number % 2 else reversed(order):
            found[way, 1].append(await call(connections[way], number))
    for connection in connections.values():
        connection.close()
    return found


async def together(port: int, num_calls: int, in_flight: int) -> list[float]:
    times_s: list[float] = []
    numbers = itertools.count()

    async def keep_calling() -> None:
        connection = await Connection.open(port)
        while (number := next(numbers)) < num_calls:
            times_s.append(await call(connection, number))
        connection.close()

    async with asyncio.TaskGroup() as group:
        for _connection in range(in_flight):
            group.create_task(keep_calling())
    return times_s


async def call(connection: Connection, number: int) -> float:
    body = json.dumps({"model": "float32", "input": f"Where is the station, please? {number}"}).encode()
    started_s = time.perf_counter()
    answer = await connection.request("POST", PATH, body)
    if answer.status != 200:
        raise RuntimeError(f"answered {answer.status}: {answer.body[:300]!r}")
    return time.perf_counter() - started_s


def added(samples: Sequence[Sample]) -> str:
    """The differences of both ways, as the median over the rounds."""

    def difference(value: str) -> float:
        rounds: dict[int, dict[str, float]] = {}
        for sample in samples:
            rounds.setdefault(sample.round, {})[sample.row] = sample.values[value]
        return statistics.median(each[THROUGH] - each[DIRECT] for each in rounds.values())

    return f"The gateway adds {difference('p50_ms'):.2f} ms at p50 and {difference('p95_ms'):.2f} ms at p95."


if __name__ == "__main__":
    main()
