"""Fits the simulator's step time to our own runtime over HTTP, then compares simulated with measured times on other workloads.

What is fitted: prompts of several lengths alone (their first token), and several sequences that decode side by side. What is
held out: requests of mixed lengths that arrive at random. Measured is one server with one replica, without prefix cache and
guesses, which the step time does not know.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import statistics
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import report
import uvloop
from servers import OtherLoad, RunningServer, Target
from targets import BENCH, OFFLINE, SIXFOLD, WORK, pull_demo_models, work_folder

from sixfold.core.benchmark.client import Answer, Connection
from sixfold.scaling.autoscale.step_time import Measured, StepTime, fit
from sixfold.scaling.sim.outcome import Summary, summarize
from sixfold.scaling.sim.replica import ReplicaProfile
from sixfold.scaling.sim.request import TraceRequest
from sixfold.scaling.sim.routing import RoundRobin
from sixfold.scaling.sim.simulation import Rules, Simulation
from sixfold.scaling.sim.site import Site
from sixfold.scaling.spec import ScalingSpec, Slo

PROMPTS = (16, 64, 128, 256, 384)
DECODE = ((1, 16), (1, 256), (2, 64), (4, 64), (4, 256), (8, 64), (8, 256))
OUTPUT_TOKENS = 48
FEWEST = 5
"""Requests of a held-out workload, however slow the machine is."""
QUICK_PROMPTS = (16, 96)
QUICK_DECODE = ((1, 16), (2, 64))
QUICK_OUTPUT_TOKENS = 8
GOALS = {"ttft": 0.25, "e2e": 0.15}
TOKENS = (1000, 30_000)
"""Prompts are random token ids in this range: their length is exact, and no two share a prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests that arrive at random."""

    name: str
    rate_per_s: float
    prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One measured request."""

    sent_s: float
    prompt_tokens: int
    output_tokens: int
    first_s: float
    last_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=3, help="of each point of the fit")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each held-out workload")
    parser.add_argument(
        "--load", type=float, nargs="+", default=[0.3, 0.6], help="shares of what the fit says it can do"
    )
    parser.add_argument("--quick", action="store_true", help="few points and short answers: shows that it runs")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    # Servers are in sessions of their own, so nothing but this process ends them: SIGTERM must unwind as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda _signum, _frame: sys.exit(143))
    work_folder()
    model = pull_demo_models(BENCH.parent / "examples" / "demo.yaml")["chat"]
    with RunningServer(target(model, args.dtype), WORK) as server:
        server.wait_ready()
        load = OtherLoad(server)
        result = uvloop.run(calibrate(server, args))
        result["other_load"] = load.share()
    result["machine"] = report.machine()
    print(json.dumps(result, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1), encoding="utf-8")


def target(model: Path, dtype: str) -> Target:
    config = WORK / f"calibrate-{dtype}.yaml"
    options = {"dtype": dtype, "speculation": {"method": "off"}, "prefix_cache": "off"}
    config.write_text(json.dumps({"models": {"chat": {"source": f"file:{model.resolve()}", "options": options}}}))
    return Target(
        name=f"calibrate-{dtype}",
        command=lambda port: [str(SIXFOLD), "serve", str(config), "--port", str(port), "--log-level", "warning"],
        env=OFFLINE,
        ready_path="/ready",
        pausable=False,
    )


async def calibrate(server: RunningServer, args: argparse.Namespace) -> dict[str, Any]:
    """Measures, fits, and measures again what was not fitted."""
    draws = random.Random(0)
    await many(server.port, [(64, 8)] * 4, draws)
    points: list[Measured] = []
    output = QUICK_OUTPUT_TOKENS if args.quick else OUTPUT_TOKENS
    for _ in range(args.repeats):
        for rows, prompt in QUICK_DECODE if args.quick else DECODE:
            points.append(decode_point(await many(server.port, [(prompt, output)] * rows, draws)))
        for prompt in QUICK_PROMPTS if args.quick else PROMPTS:
            (timed,) = await many(server.port, [(prompt, 1)], draws)
            points.append(Measured(prefill_tokens=prompt, decode_rows=0, kv_tokens=0, seconds=timed.first_s))
    step_time = fit(points)
    overhead_s = overhead(step_time, points)
    budget = int(gauge(server.port, "step_budget_units"))
    result: dict[str, Any] = {
        "step_time": asdict(step_time),
        "overhead_s": overhead_s,
        "max_step_tokens": budget,
        "points": [asdict(point) for point in points],
        "fit_error": statistics.mean(abs(predicted(step_time, point) / point.seconds - 1) for point in points),
        "held_out": [],
    }
    profile = ReplicaProfile(step_time=step_time, max_step_tokens=max(1, budget), overhead_s=overhead_s)
    for workload in workloads(step_time, args.load):
        measured = await open_loop(server.port, workload, args.seconds, draws)
        result["held_out"].append(compare(workload, measured, profile))
        print(json.dumps(result["held_out"][-1]), file=sys.stderr, flush=True)
    for time_name, goal in GOALS.items():
        error = statistics.mean(each[f"{time_name}_error"] for each in result["held_out"])
        result[f"{time_name}_error"], result[f"{time_name}_kept"] = error, error <= goal
    return result


def predicted(step_time: StepTime, point: Measured) -> float:
    return (
        step_time.base_s * point.steps
        + step_time.per_prefill_s * point.prefill_tokens
        + step_time.per_row_s * point.decode_rows
        + step_time.per_kv_s * point.kv_tokens
    )


def overhead(step_time: StepTime, points: Sequence[Measured]) -> float:
    """What a request takes beside its steps: the rest of the first tokens' times."""
    rests = [point.seconds - predicted(step_time, point) for point in points if point.decode_rows == 0]
    return max(0.0, statistics.median(rests))


def decode_point(requests: Sequence[Timed]) -> Measured:
    """The time in which all of them decode: from the last first token to the first last one."""
    start_s = max(each.sent_s + each.first_s for each in requests)
    end_s = min(each.sent_s + each.last_s for each in requests)
    first = min(requests, key=lambda each: each.sent_s + each.last_s)
    pace_s = (first.last_s - first.first_s) / (first.output_tokens - 1)
    steps = max(1.0, (end_s - start_s) / pace_s)
    context = first.prompt_tokens + first.output_tokens - steps / 2
    rows = len(requests)
    return Measured(
        steps=steps,
        prefill_tokens=0,
        decode_rows=rows * steps,
        kv_tokens=rows * steps * context,
        seconds=end_s - start_s,
    )


def workloads(step_time: StepTime, loads: Sequence[float]) -> list[Workload]:
    """Mixed lengths at shares of what one replica could do, were it never idle and always eight abreast."""
    found: list[Workload] = []
    for name, prompt, output in (("chat", (32, 256), (16, 64)), ("code", (128, 384), (4, 24))):
        mean_prompt, mean_output = sum(prompt) / 2, sum(output) / 2
        step_s = step_time.seconds(prefill_tokens=0, decode_rows=8, kv_tokens=int(8 * mean_prompt))
        request_s = mean_prompt * step_time.per_prefill_s + mean_output * step_s / 8
        found += [
            Workload(
                name=f"{name} at {load:g}", rate_per_s=load / request_s, prompt_tokens=prompt, output_tokens=output
            )
            for load in loads
        ]
    return found


async def open_loop(port: int, workload: Workload, seconds: float, draws: random.Random) -> list[Timed]:
    """Sends requests at random times, whether earlier ones are answered or not."""
    start_s, at_s = time.perf_counter(), 0.0
    tasks: list[asyncio.Task[Timed]] = []
    while True:
        at_s += draws.expovariate(workload.rate_per_s)
        if at_s > seconds and len(tasks) >= FEWEST:
            break
        prompt, output = draws.randint(*workload.prompt_tokens), draws.randint(*workload.output_tokens)
        await asyncio.sleep(max(0.0, start_s + at_s - time.perf_counter()))
        tasks.append(asyncio.create_task(one(port, prompt, output, draws)))
    return list(await asyncio.gather(*tasks))


async def many(port: int, shapes: Sequence[tuple[int, int]], draws: random.Random) -> list[Timed]:
    """Requests side by side."""
    return list(await asyncio.gather(*(one(port, prompt, output, draws) for prompt, output in shapes)))


async def one(port: int, prompt_tokens: int, output_tokens: int, draws: random.Random) -> Timed:
    body = {
        "model": "chat",
        "prompt": [draws.randrange(*TOKENS) for _ in range(prompt_tokens)],
        "max_tokens": output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
    }
    connection = await Connection.open(port)
    try:
        answer = await connection.request("POST", "/v1/completions", json.dumps(body).encode())
    finally:
        connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {answer.body[:300]!r}")
    times_s = data_times(answer)
    return Timed(
        sent_s=answer.started_s,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        first_s=times_s[0] - answer.started_s,
        last_s=times_s[-1] - answer.started_s,
    )


def data_times(answer: Answer) -> list[float]:
    """When each part that carries a token came."""
    times_s = [at_s for at_s, part in answer.parts if b'"text"' in part]
    if not times_s:
        raise RuntimeError(f"an answer without text: {answer.body[:300]!r}")
    return times_s


def gauge(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text = response.read().decode()
    found = re.search(rf"^sixfold:{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found.group(1))


def compare(workload: Workload, measured: Sequence[Timed], profile: ReplicaProfile) -> dict[str, Any]:
    """The same requests at the same times, simulated."""
    summary = simulated(measured, profile)
    row: dict[str, Any] = {"workload": asdict(workload), "num_requests": len(measured)}
    for name, ours, theirs in (
        ("ttft", summary.ttft, [each.first_s for each in measured]),
        ("e2e", summary.e2e, [each.last_s for each in measured]),
    ):
        mean_s = statistics.mean(theirs)
        row[f"{name}_measured_s"], row[f"{name}_simulated_s"] = mean_s, ours.mean_s
        row[f"{name}_error"] = abs(ours.mean_s / mean_s - 1)
        row[f"{name}_p95_measured_s"], row[f"{name}_p95_simulated_s"] = (
            sorted(theirs)[int(0.95 * len(theirs))],
            ours.p95_s,
        )
    return row


def simulated(measured: Sequence[Timed], profile: ReplicaProfile) -> Summary:
    start_s = min(each.sent_s for each in measured)
    trace = [
        TraceRequest(
            arrived_s=each.sent_s - start_s, prompt_tokens=each.prompt_tokens, output_tokens=each.output_tokens
        )
        for each in measured
    ]
    scaling = ScalingSpec(min_replicas=1, max_replicas=1)
    site = Site("site", profile, scaling, RoundRobin(), num_initial=1, now_s=0.0)
    history = Simulation([site], Rules(patience_s=3600.0)).run(sorted(trace, key=lambda each: each.arrived_s))
    return summarize(history, Slo(ttft_s=1.0), 1.0)


if __name__ == "__main__":
    main()
