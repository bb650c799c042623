"""More than can be done: what is still done in time at 1, 2 and 5 times the capacity, and whether Retry-After is right.

    python bench/overload.py [--only chat] [--seconds 14]

One server, the demo's chat and embedding models, as they are configured. Each request of an open loop says in
`x-request-timeout-s` when its answer is of no use any more; who would be late is refused at once. For each model in turn:

1. Fifteen requests one by one, then 24 at once, of which none must be refused; where one takes more than a tenth of its time
   alone, all are made smaller, so that a slow machine has as many of them to count. Capacity: closed loops of rising concurrency
   until goodput stops growing. *Goodput* is answers within the deadline a second.
2. An open loop with Poisson arrivals at 0.7 times its goodput. Then three rounds of the best closed loop, and of open loops at 2
   and 5 times, no retries: in turn, since a machine's speed drifts by more than is measured here. The figure is the median
   goodput at 5 times over the greatest of the three medians. A lead of one and a quarter deadlines, at least 5 s, is not counted.
3. Probes. The load of 5 times fills the queue for a second and pauses. A probe that has half as much time as the others is
   refused then, and *next in line*: it asks again every 20 ms until it is admitted, and that time is compared with what its
   refusal said (`retry-after-ms`, the exact figure behind `Retry-After`, which has whole seconds, rounded up: how much that adds
   is stated apart). While others take each place that becomes free, no figure can promise it: how often clients that come back
   as told then get in at their first, second, ... try is stated, too.

About five minutes a model on idle cores. Writes ``bench/results/DATE-overload.{json,md}``; exits with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import report
import uvloop
import yaml
from overload_loops import CALM, FLOOD, MAX_COMEBACKS, NUM_PROBES, PROBE_EVERY_S, RUSH, Loop, Overload, Workload
from report import Claim
from servers import RunningServer, Target
from targets import BENCH, OFFLINE, SIXFOLD, WORK, work_folder

GOODPUT_GOAL = 0.9
RETRY_GOAL = 0.3
WORDS = "ward night pulse fever dose chart light rest nurse river table winter garden letter music road".split()


def chat_body(draw: random.Random, size: float) -> dict[str, object]:
    question = f"Write about {' '.join(draw.choices(WORDS, k=12))}."
    messages = [{"role": "user", "content": question}]
    # Answers of one length would all end together, and a window would count waves of them; the same below.
    num_tokens = max(2, round(draw.randint(24, 72) * size))
    return {"model": "chat", "messages": messages, "max_tokens": num_tokens, "temperature": 0}


def embed_body(draw: random.Random, size: float) -> dict[str, object]:
    num_texts = max(1, round(draw.randint(4, 12) * size))
    return {"model": "embed", "input": [" ".join(draw.choices(WORDS, k=80)) for _ in range(num_texts)]}


WORKLOADS = (
    Workload(model="chat", path="/v1/chat/completions", deadline_s=8.0, body=chat_body, probe_within_s=4.0),
    Workload(model="embed", path="/v1/embeddings", deadline_s=3.0, body=embed_body, probe_within_s=1.5),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[each.model for each in WORKLOADS])
    parser.add_argument(
        "--seconds", type=float, default=14.0, help="of each loop; those that look for the peak take half (default 14)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the claims here")
    args = parser.parse_args()
    work_folder()
    # Servers are in sessions of their own, so nothing but this process ends them: SIGTERM must unwind as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda _signum, _frame: sys.exit(143))
    began_s = time.monotonic()
    chosen = [each for each in WORKLOADS if not args.only or each.model in args.only]
    facts: dict[str, object] = {**report.machine(), "arguments": sys.argv[1:]}
    lines: list[str] = []
    claims: list[Claim] = []
    with RunningServer(target(chosen), WORK / "logs") as server:
        server.wait_ready()
        for workload in chosen:
            bench = Overload(server.port, workload, args.seconds, args.seed)
            uvloop.run(bench.run())
            claims += claims_of(bench)
            lines += lines_of(bench)
            facts[workload.model] = facts_of(bench)
    facts |= {"seconds": round(time.monotonic() - began_s), "claims": [asdict(claim) for claim in claims]}
    told = ("date", "commit", "cpu", "arguments", "seconds")
    lines = ["# Overload", "", *(f"- {name}: {facts[name]}" for name in told), "", *report.claim_lines(claims), *lines]
    print("\n".join(lines))
    print(f"\nwritten: {report.write(BENCH / 'results', facts, [], lines, name='overload')}")
    if args.json is not None:
        args.json.write_text(json.dumps(facts["claims"], indent=1) + "\n")
    return 0 if all(claim.met for claim in claims) else 1


def target(chosen: Sequence[Workload]) -> Target:
    """The demo's models."""
    demo = yaml.safe_load((BENCH.parent / "examples" / "demo.yaml").read_text())["models"]
    models = {each.model: demo[each.model] for each in chosen}
    config = WORK / "overload.yaml"
    config.write_text(yaml.safe_dump({"models": models}))
    return Target(
        name="overload",
        command=lambda port: [str(SIXFOLD), "serve", str(config), "--port", str(port), "--log-level", "warning"],
        env=OFFLINE,
        ready_path="/ready",
        pausable=False,
    )


def claims_of(bench: Overload) -> list[Claim]:
    """Goodput, refusals, Retry-After."""
    name, floods = bench.workload.model, bench.floods
    share = bench.flood_per_s / bench.peak_per_s
    outcomes = sum((flood.outcomes for flood in floods), Counter[str]())
    refused, num_late = outcomes["429"], sum(flood.num_late for flood in floods)
    strange = sum(count for kind, count in outcomes.items() if kind not in ("200", "429"))
    ratio = ratio_of(bench)
    num_calm, of_calm = bench.calm.num_due - bench.calm.num_good, bench.calm.num_due
    return [
        Claim(
            claim=f"{name}: goodput at {FLOOD:g} times the capacity over its peak",
            figure=f"{share:.2f} ({bench.flood_per_s:.2f} of {bench.peak_per_s:.2f} answers a second within"
            f" {bench.workload.deadline_s:g} s, medians of {len(floods)} rounds; {num_late} late)",
            goal=f">= {GOODPUT_GOAL:g}",
            met=share >= GOODPUT_GOAL,
        ),
        Claim(
            claim=f"{name}: refused or late at {CALM:g} times, and of {RUSH} that come at once after single ones",
            figure=f"{num_calm} of {of_calm}, and {bench.num_rush_refused}",
            goal="at most 2%, and none",
            met=num_calm <= 0.02 * of_calm and not bench.num_rush_refused,
        ),
        Claim(
            claim=f"{name}: the rest get 429 with Retry-After",
            figure=f"{refused} refused so, {strange} otherwise, of {sum(flood.num_due for flood in floods)}",
            goal="all",
            met=refused > 0 and not strange,
        ),
        Claim(
            claim=f"{name}: what Retry-After says over the time until whoever is next in line is admitted",
            figure=f"median {ratio:.2f} of {len(bench.probes)} probes ({quartiles(bench)});"
            f" {num_right(bench)} of them within {RETRY_GOAL:.0%} or one try",
            goal=f"1 +- {RETRY_GOAL:g}",
            met=len(bench.probes) >= NUM_PROBES // 2 and abs(ratio - 1.0) <= RETRY_GOAL,
        ),
    ]


def ratio_of(bench: Overload) -> float:
    """The median of said over seen; 0 without probes."""
    return statistics.median(said_s / seen_s for said_s, seen_s in bench.probes) if bench.probes else 0.0


def quartiles(bench: Overload) -> str:
    if len(bench.probes) < 2:
        return "too few"
    low, _middle, high = statistics.quantiles([said_s / seen_s for said_s, seen_s in bench.probes], n=4)
    return f"quartiles {low:.2f} and {high:.2f}"


def num_right(bench: Overload) -> int:
    grain_s = 2 * PROBE_EVERY_S
    return sum(abs(said_s - seen_s) <= max(RETRY_GOAL * seen_s, grain_s) for said_s, seen_s in bench.probes)


def lines_of(bench: Overload) -> list[str]:
    """The tables behind the claims."""
    rows = [
        *((f"{in_flight} in flight", loop) for in_flight, loop in bench.closed.items()),
        (f"{CALM:g} times", bench.calm),
        *round_rows(bench),
    ]
    rounded_s = [value for flood in bench.floods for value in flood.rounded_s]
    told_s = [value for flood in bench.floods for value in flood.told_s]
    rounded = f"{statistics.mean(rounded_s):.2f}" if rounded_s else "-"
    told = f"{statistics.median(told_s):.2f}" if told_s else "-"
    seen = f"{statistics.median(seen_s for _said_s, seen_s in bench.probes):.2f}" if bench.probes else "-"
    return [
        *("", f"## {bench.workload.model}: answers within {bench.workload.deadline_s:g} s", ""),
        *bench.told_share,
        "| load | good/s | over the peak | late | 200 | 429 | other |",
        "|---" * 7 + "|",
        *(row(bench, name, loop) for name, loop in rows),
        "",
        f"At {FLOOD:g} times refusals say {told} s at the median, which whole seconds round up by {rounded} s on average."
        f" Probes that had {bench.workload.probe_within_s:g} s were next in line, and admitted after {seen} s at the median.",
        f"Clients that come back as told while others take every place, by how often they had to: {tried(bench)}.",
    ]


def round_rows(bench: Overload) -> list[tuple[str, Loop]]:
    return [
        (f"round {number}: {name}", loop)
        for number, loops in enumerate(bench.rounds, 1)
        for name, loop in loops.items()
    ]


def row(bench: Overload, name: str, loop: Loop) -> str:
    other = sum(count for kind, count in loop.outcomes.items() if kind not in ("200", "429"))
    share = loop.good_per_s / bench.peak_per_s
    counts = f"{loop.num_late} | {loop.outcomes['200']} | {loop.outcomes['429']} | {other}"
    return f"| {name} | {loop.good_per_s:.2f} | {share:.2f} | {counts} |"


def tried(bench: Overload) -> str:
    return ", ".join(
        f"{count}x {number if number < MAX_COMEBACKS else 'never'}" for number, count in sorted(bench.tries.items())
    )


def facts_of(bench: Overload) -> dict[str, object]:
    """For the JSON."""
    loops = {f"{in_flight} in flight": loop for in_flight, loop in bench.closed.items()} | dict(round_rows(bench))
    return {
        "loops": {name: facts_of_loop(loop) for name, loop in loops.items()},
        "probes_said_and_seen_s": bench.probes,
        "comebacks": dict(bench.tries),
    }


def facts_of_loop(loop: Loop) -> dict[str, object]:
    counts = {"num_due": loop.num_due, "num_good": loop.num_good, "num_late": loop.num_late}
    return {"seconds": loop.seconds, **counts, "outcomes": dict(loop.outcomes)}


if __name__ == "__main__":
    sys.exit(main())
