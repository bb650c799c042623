"""Whether the simulator ranks the gateway's routing policies as our own runtime does.

    python bench/policy_ranking.py --out results/policy-ranking.json     # measures and compares
    python bench/policy_ranking.py --from results/policy-ranking.json    # compares again, without measuring

Two servers with one core each, and one gateway for each policy in front of both. Every policy gets the same conversations at the
same times (their tokens differ, so that none finds what another has left), round by round, another policy first each time. The
step time is fitted on both servers at once, which share the memory as they do later; then the simulator plays the same requests
through the gateway's own policies.

Two policies are a tie where the interval of their difference in the measurement holds zero: 90%, by drawing conversations anew.
The ranking is preserved where the simulator orders no others the other way round. Means within 1% are no order: which pairs
the simulator can't tell apart is told (`simulated_equal`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import report
import uvloop
from calibrate import fit_steps, fitted, gauge, one_row_a_line, read
from conversations import KINDS, Kind, Turn, draw_tokens, draw_turns, mean_work_s
from gateway import gateway_target
from live_steps import watched
from ranking import judge
from servers import RunningServer, Target, free_port
from targets import BENCH, OFFLINE, SIXFOLD, WORK, pull_demo_models, work_folder
from timed_requests import Timed, at_their_times, send, side_by_side

POLICIES = ("round_robin", "power_of_two", "prefix", "kv")
BLOCK_TOKENS = 16
PAUSE_S = 1.0
"""After each play: announcements of caches arrive."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of one policy in one round of one workload")
    parser.add_argument("--load", type=float, default=0.8, help="share of what both could do without caches")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--quick", action="store_true", help="a short fit: shows that it runs")
    parser.add_argument("--from", dest="file", type=Path, help="a file of an earlier run; nothing is measured")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    measurement = read(args.file) if args.file is not None else measured(args)
    result = {"result": judge(measurement), "measurement": measurement}
    print(json.dumps(result["result"], indent=1))
    if args.out is not None:
        args.out.write_text(one_row_a_line(result), encoding="utf-8")


def measured(args: argparse.Namespace) -> dict[str, Any]:
    # Servers are in sessions of their own, so nothing but this process ends them: SIGTERM must unwind as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda _signum, _frame: sys.exit(143))
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("Two replicas need two cores, and this process may use one.")
    work_folder()
    model = pull_demo_models(BENCH.parent / "examples" / "demo.yaml")["chat"]
    with ExitStack() as stack:
        events = [f"tcp://127.0.0.1:{free_port()}" for _ in cores]
        servers = [
            stack.enter_context(RunningServer(replica(model, core, args.dtype, endpoint), WORK))
            for core, endpoint in zip(cores, events, strict=True)
        ]
        for server in servers:
            server.wait_ready()
        gateways = {
            policy: stack.enter_context(RunningServer(gateway([each.port for each in servers], events, policy), WORK))
            for policy in POLICIES
        }
        for each in gateways.values():
            each.wait_ready()
        ports = {policy: each.port for policy, each in gateways.items()}
        measurement = uvloop.run(measure([each.port for each in servers], ports, args))
    return {"dtype": args.dtype, **measurement, "machine": report.machine()}


def replica(model: Path, core: int, dtype: str, kv_events: str) -> Target:
    """A server that may use one core, and so computes with one thread."""
    config = WORK / f"policy-ranking-{core}.json"
    options = {
        "dtype": dtype,
        "speculation": {"method": "off"},
        "block_size_tokens": BLOCK_TOKENS,
        "kv_events": {"endpoint": kv_events},
    }
    config.write_text(json.dumps({"models": {"chat": {"source": f"file:{model.resolve()}", "options": options}}}))
    serve = [str(SIXFOLD), "serve", str(config), "--log-level", "warning"]
    return Target(
        name=f"policy-ranking-{core}",
        command=lambda port: ["taskset", "--cpu-list", str(core), *serve, "--port", str(port)],
        env=OFFLINE,
        ready_path="/ready",
        pausable=False,
    )


def gateway(ports: Sequence[int], kv_events: Sequence[str], policy: str) -> Target:
    replicas = [
        {"url": f"http://127.0.0.1:{port}", "kv_events": endpoint}
        for port, endpoint in zip(ports, kv_events, strict=True)
    ]
    return gateway_target(f"policy-ranking-{policy}", ports, replicas=replicas, routing={"policy": policy})


async def measure(servers: Sequence[int], gateways: Mapping[str, int], args: argparse.Namespace) -> dict[str, Any]:
    """Fits the step time, then plays all workloads by all policies."""
    experiments = await fit_both(servers, args)
    step_time = fit_steps(experiments)
    cache_blocks = gauge(servers[0], "kv_blocks_total")
    rates = {kind.name: args.load * len(servers) / mean_work_s(kind, step_time) for kind in KINDS}
    plays: list[dict[str, Any]] = []
    for number in range(args.rounds):
        for kind in KINDS:
            seed = f"{kind.name}/{number}"
            turns = draw_turns(kind, conversations_per_s=rates[kind.name], seconds=args.seconds, seed=seed)
            shift = number % len(POLICIES)
            for policy in (*POLICIES[shift:], *POLICIES[:shift]):
                timed = await play(gateways[policy], kind, turns, seed=f"{seed}/{policy}")
                plays.append(
                    {
                        "kind": kind.name,
                        "round": number,
                        "policy": policy,
                        "conversations": [turn.conversation for turn in turns],
                        "requests": [each.row for each in timed],
                    }
                )
                print(f"played {kind.name}, round {number + 1}, {policy}: {len(turns)}", file=sys.stderr, flush=True)
    return {
        "max_step_tokens": int(gauge(servers[0], "step_budget_units")),
        "cache_tokens": int(cache_blocks) * BLOCK_TOKENS,
        "block_tokens": BLOCK_TOKENS,
        "kinds": [asdict(kind) for kind in KINDS],
        "conversations_per_s": rates,
        "experiments": experiments,
        "plays": plays,
    }


async def fit_both(servers: Sequence[int], args: argparse.Namespace) -> list[dict[str, Any]]:
    """The experiments of `calibrate`, at both servers at once."""
    async with AsyncExitStack() as stack:
        for port in servers:
            await side_by_side(port, [(64, 8)] * 4, random.Random(port))
        watchers = [await stack.enter_async_context(watched(port, "chat")) for port in servers]
        found = await asyncio.gather(
            *(
                fitted(port, watcher, random.Random(number), repeats=1 if args.quick else 2, quick=args.quick)
                for number, (port, watcher) in enumerate(zip(servers, watchers, strict=True))
            )
        )
    return [experiment for experiments in found for experiment in experiments]


async def play(port: int, kind: Kind, turns: Sequence[Turn], *, seed: str) -> list[Timed]:
    """Sends the turns through a gateway; the times are as of the turns."""
    prompts = [draw_tokens(kind, turn, seed=seed) for turn in turns]
    timed = await at_their_times(
        [
            (turn.at_s, lambda p=prompt, o=turn.output_tokens: send(port, p, o))
            for turn, prompt in zip(turns, prompts, strict=True)
        ]
    )
    await asyncio.sleep(PAUSE_S)
    return timed


if __name__ == "__main__":
    main()
