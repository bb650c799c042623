"""Mixed traffic of six modalities with cancels, disconnects, malformed requests and worker kills: what is lost, what stays.

    python bench/soak --minutes 6 [--seed 1]

Serves the demo's six models with small caches, asks each known request once alone, warms up with the whole mix, counts what all
processes hold, drives two halves of the same mix, and counts after each. A worker is killed (SIGKILL, which is what the kernel's
out-of-memory killer sends) 20 s into each half and every minute from there. Prints a table, writes
``bench/results/DATE-soak.{json,md}``, and exits with 1 if a goal is missed. On two idle cores it takes the minutes and about two
more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
import report
import uvloop
import verdict
import yaml
from census import Census, Observer
from corpus import Corpus
from kills import Kill, keep_killing
from ledger import Ledger
from servers import RunningServer, Target
from targets import BENCH, OFFLINE, SIXFOLD, WORK, work_folder
from traffic import Traffic

WARM_UP_S = 20.0
KV_CACHE_BYTES = 64 << 20
STOP_GRACE_S = 10.0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6.0, help="of traffic, both halves together (default 6)")
    parser.add_argument("--seed", type=int, default=1, help="of what the clients do")
    parser.add_argument("--json", type=Path, help="also write the claims here")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    work_folder()
    # Servers are in sessions of their own, so nothing but this process ends them: SIGTERM must unwind as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda _signum, _frame: sys.exit(143))
    began_s = time.monotonic()
    facts: dict[str, object] = {**report.machine(), "minutes": args.minutes, "seed": args.seed}
    with RunningServer(target(), WORK / "logs") as server:
        print(f"ready after {server.wait_ready():.0f} s, log in {WORK / 'logs'}", flush=True)
        ledger, kills, censuses = uvloop.run(soak(server, args))
        family = psutil.Process(server.pid).children(recursive=True)
        server.stop()
        _gone, left = psutil.wait_procs(family, timeout=STOP_GRACE_S)
    found = verdict.Found(ledger=ledger, kills=kills, censuses=censuses, num_left_behind=len(left))
    claims = verdict.claims_of(found)
    facts |= {
        "seconds": round(time.monotonic() - began_s),
        "claims": [asdict(claim) for claim in claims],
        "kills": [asdict(kill) for kill in kills],
        "ends": ledger.counts(),
        "censuses": [asdict(census) for census in censuses],
    }
    told = ("date", "commit", "cpu", "minutes", "seed", "seconds")
    lines = ["# Soak", "", *(f"- {name}: {facts[name]}" for name in told), ""]
    lines += [*report.claim_lines(claims), *verdict.detail_lines(found)]
    print("\n".join(lines))
    print(f"\nwritten: {report.write(BENCH / 'results', facts, [], lines, name='soak')}")
    if args.json is not None:
        args.json.write_text(json.dumps(facts["claims"], indent=1) + "\n")
    return 0 if all(claim.met for claim in claims) else 1


def target() -> Target:
    """The demo as it ships, with small caches."""
    folder = BENCH.parent / "examples"
    data: dict[str, Any] = yaml.safe_load((folder / "demo.yaml").read_text())
    for entry in data["models"].values():
        if isinstance(entry["source"], str) and entry["source"].startswith("file:"):
            entry["source"] = f"file:{folder / entry['source'].removeprefix('file:')}"
    data["models"]["chat"].setdefault("options", {})["kv_cache_bytes"] = KV_CACHE_BYTES
    config = WORK / "soak.yaml"
    config.write_text(yaml.safe_dump(data))
    return Target(
        name="soak",
        command=lambda port: [str(SIXFOLD), "serve", str(config), "--port", str(port)],
        env=OFFLINE,
        ready_path="/ready",
        pausable=False,
    )


async def soak(
    server: RunningServer, args: argparse.Namespace
) -> tuple[Ledger, list[Kill], tuple[Census, Census, Census]]:
    """Learns, warms up, and drives two halves."""
    corpus, ledger, observer = Corpus(), Ledger(), Observer(server)
    await corpus.learn(server.port)
    warming = Traffic(server.port, corpus, Ledger(), args.seed - 1)
    await warming.learn()
    await warming.touch_all(2)
    await warming.run(WARM_UP_S)
    await warming.touch_all(2)
    baseline = await observer.settle()
    print(f"baseline: {baseline.pss_mib:,.0f} MiB", flush=True)
    traffic = Traffic(server.port, corpus, ledger, args.seed)
    await traffic.learn()
    kills: list[Kill] = []
    censuses: list[Census] = []
    half_s = 30.0 * args.minutes
    for number in (1, 2):
        async with asyncio.TaskGroup() as group:
            group.create_task(traffic.run(half_s))
            killing = group.create_task(keep_killing(server, observer, half_s))
        kills += killing.result()
        await traffic.touch_all(2)  # workers that took others' places make what is made on first use
        censuses.append(await observer.settle(baseline))
        print(f"half {number}: {dict(ledger.counts())}, {censuses[-1].pss_mib:,.0f} MiB", flush=True)
    return ledger, kills, (baseline, censuses[0], censuses[1])


if __name__ == "__main__":
    sys.exit(main())
