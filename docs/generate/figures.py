"""The figures of the design pages, from recorded results and from the real classes: ``python -m docs.generate.figures``."""

from __future__ import annotations

import json
import random
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from docs.generate.figure import Band, bars, lines, timeline
from sixfold.core.batching.budget import Objective, ObjectiveKind, StepBudget
from sixfold.core.batching.model import StepRange
from sixfold.scaling.hub.model import Capacity, Constraints, Latency, ModelDemand, OriginLoad, Plan, Site, Snapshot
from sixfold.scaling.hub.placement import optimize

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "images"
RESULTS = ROOT / "bench" / "results"


def result(name: str) -> Any:
    """A recorded result."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def prefix_cache() -> str:
    """Time to the first token over the turns of a chat."""
    samples = [each for each in result("2026-11-28T183843-llm-cache.json")["samples"] if each["workload"] == "chat"]
    curves: dict[str, list[tuple[float, float]]] = {}
    for label, row in (("with the prefix cache", "cache"), ("without", "neither")):
        own = [each["values"]["ttft_ms"] for each in samples if each["row"] == row]
        curves[label] = [(turn + 1.0, statistics.median(own[turn::10])) for turn in range(10)]
    return lines("Time to the first token, SmolLM2-135M on two cores", "ms", "turn of the chat", curves)


def speculation() -> str:
    """Tokens a second with and without guesses."""
    return bars(
        "Tokens a second, 128 in and 64 out, SmolLM2-135M on two cores",
        "tokens/s",
        {
            f"{count} in flight": {
                "with guesses": _rate(f"{count} in flight", "Sixfold"),
                "without": _rate(f"{count} in flight", "Sixfold, no guesses"),
                "vLLM 0.32, eager": _rate(f"{count} in flight", "vLLM 0.32, eager"),
            }
            for count in (1, 8, 24)
        },
    )


def _rate(workload: str, row: str) -> float:
    samples = result("2026-11-28T145624-llm.json")["samples"]
    return statistics.median(
        each["values"]["tokens_per_s"] for each in samples if each["workload"] == workload and each["row"] == row
    )


def context_parallelism() -> str:
    """Seconds of a step on one card and on two."""
    measured = result("2026-11-28-h200-x2.json")
    groups: dict[str, dict[str, float]] = {}
    for shape in measured["tokens_shared"][1:]:
        ways = {way: figures["step_s"] for way, figures in shape["ways"].items()}
        groups[shape["shape"].replace(", bfloat16", "")] = {"one H200": shape["alone_s"], **ways}
    rows = measured["rows_shared"]
    groups["Wan, guidance (2 rows)"] = {"one H200": rows["alone_s"], "by guidance": rows["cfg"]["step_s"]}
    return bars("One step on two H200, random weights", "s", groups)


def routing() -> str:
    """Mean time to the first token by policy."""
    groups: dict[str, dict[str, float]] = {}
    for fleet in result("2026-11-28-routing-sim.json")["fleets"]:
        ours = fleet["ours"]
        groups[f"{fleet['workers']} replicas"] = {
            "in turns": 1000 * ours["round_robin"]["ttft_mean_s"],
            "by cached prefix": 1000 * ours["kv_aware"]["ttft_mean_s"],
        }
    return bars("Mean time to the first token, Mooncake's conversations (simulated)", "ms", groups)


def tokenization() -> str:
    """Texts a second of threads and processes, as the decision's table has them."""
    page = (ROOT / "docs" / "decisions" / "tokenization-pool.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| \**(\w+)\**\*? \| \**(\d)\** \| \**off\** \| [^|]+ \| \**([\d,]+)\** \|", page, re.MULTILINE
    )
    groups: dict[str, dict[str, float]] = {}
    for kind, workers, rate in rows:
        groups.setdefault(f"{workers} worker{'' if workers == '1' else 's'}", {})[kind] = float(rate.replace(",", ""))
    return bars("Texts tokenized a second, 16 a piece, two cores", "texts/s", groups)


def step_budget() -> str:
    """How the real controller moves the budget of a machine whose steps take a known time."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for label, objective in (
        ("throughput", Objective()),
        ("p95 between tokens 0.1 s", Objective(kind=ObjectiveKind.P95_ITL_S, target_s=0.1)),
        ("p95 between tokens 0.05 s", Objective(kind=ObjectiveKind.P95_ITL_S, target_s=0.05)),
    ):
        draw = random.Random(1)
        budget = StepBudget(StepRange(), objective)
        curve: list[tuple[float, float]] = []
        for number in range(1201):
            units = budget.units
            seconds = (0.02 + 0.0001 * units) * draw.uniform(0.95, 1.05)
            budget.observe_step(units, seconds, limited=True)
            if objective.kind is ObjectiveKind.P95_ITL_S:
                budget.observe_latency(ObjectiveKind.P95_ITL_S, seconds)
            curve.append((float(number), float(units)))
        curves[label] = [
            (x, statistics.median(y for _, y in curve[max(0, int(x) - 20) : int(x) + 1])) for x, _ in curve[::10]
        ]
    return lines("Budget of a step, on a machine of 20 ms + 0.1 ms a unit", "units", "steps", curves)


def memory() -> str:
    """What the demo's models claim before they load, as ``sixfold plan --json`` says (give its output as a file)."""
    planned = result(max(RESULTS.glob("*-demo-plan.json")).name)
    groups = {
        model["name"]: {claim["kind"]: claim["num_bytes"] / 2**20 for claim in model["claims"]}
        for model in planned["models"]
    }
    return bars("Memory that the demo's models claim before they load", "MiB", groups, stacked=True)


def batching() -> str:
    """Who was in which step, as a real server told it (`docs.generate.record_batch`)."""
    events = result(max(RESULTS.glob("*-live-batch.json")).name)["events"]
    steps = [event for event in events if event["kind"] == "stepped"]
    rows: dict[int, int] = {}
    bands: list[Band] = []
    for number, step in enumerate(steps):
        for sequence, units in step["rows"]:
            kind = "prompt" if units > 8 else "a token, or several that were guessed"
            bands.append(Band(rows.setdefault(sequence, len(rows)), number, number + 1, kind))
    names = [f"sequence {number + 1}" for number in range(len(rows))]
    return timeline(f"{len(steps)} steps of one model, {len(rows)} sequences", "step", names, bands)


def hub() -> str:
    """Replicas by site before and after the loss of one, as the real optimizer places them."""
    sites = ("eu", "us", "asia")
    latencies = tuple(Latency(origin=a, site_id=b, latency_s=0.0 if a == b else 0.12) for a in sites for b in sites)
    demands = (
        ModelDemand(
            model="chat",
            constraints=Constraints(units={"h100": 1}, min_sites=2, survive_share=0.6),
            loads=(OriginLoad(origin="eu", num_replicas=6.0), OriginLoad(origin="us", num_replicas=4.0)),
        ),
    )
    groups: dict[str, Mapping[str, float]] = {}
    previous: Plan | None = None
    for label, lost in (("all sites", ""), ("eu is lost", "eu"), ("eu is back", "")):
        snapshot = Snapshot(
            sites=tuple(
                Site(
                    site_id=name,
                    region=name,
                    capacities=(Capacity(accelerator="h100", num_units=8, price_per_hour=price),),
                    state="lost" if name == lost else "live",
                )
                for name, price in zip(sites, (3.0, 2.5, 2.8), strict=True)
            ),
            models=demands,
            latencies=latencies,
            previous=previous,
        )
        previous = optimize(snapshot, deadline_s=2.0)
        counts = dict.fromkeys(sites, 0.0)
        for each in previous.assignments:
            counts[each.site_id] += each.num_replicas
        groups[label] = counts
    return bars("Replicas of one model, 6 asked for in eu and 4 in us", "replicas", groups)


FIGURES: Mapping[str, Callable[[], str]] = {
    "design-batching.svg": batching,
    "design-context-parallelism.svg": context_parallelism,
    "design-hub.svg": hub,
    "design-memory.svg": memory,
    "design-prefix-cache.svg": prefix_cache,
    "design-routing.svg": routing,
    "design-speculation.svg": speculation,
    "design-step-budget.svg": step_budget,
    "design-tokenization.svg": tokenization,
}


def main() -> None:
    """Writes all figures, or those that are named."""
    for name in sys.argv[1:] or FIGURES:
        (FOLDER / name).write_text(FIGURES[name](), encoding="utf-8")
        print(f"wrote docs/images/{name}")


if __name__ == "__main__":
    main()
