"""What cache-aware routing saves on Mooncake's conversations, in our simulator, beside NVIDIA's on the same engine.

`bench/dynosim.py` writes the reference. Ours is given the step times of that reference's engine and its sizes; then both replay
the same requests, so that the comparison is one of routing and batching.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from sixfold.scaling.autoscale.step_time import Measured, StepTime, fit
from sixfold.scaling.sim.experiment import simulate
from sixfold.scaling.sim.settings import SimulationSettings
from sixfold.scaling.sim.traces import read_trace

POLICIES = ("round_robin", "least_loaded", "prefix_hash", "kv_aware")
ENGINE = {"max_step_tokens": 8192, "max_rows": 256, "cache_tokens": 16384 * 64, "block_tokens": 512}
"""DynoSim's defaults: 16,384 blocks of 64 tokens, 8,192 tokens a step."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares routing policies on a Mooncake trace.")
    parser.add_argument("trace", type=Path)
    parser.add_argument("--reference", type=Path, required=True, help="what bench/dynosim.py wrote")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    reference = json.loads(args.reference.read_text(encoding="utf-8"))
    step_time = fit([Measured(**step) for step in reference["engine"]])
    trace = read_trace(args.trace, limit=reference["requests"])
    report: dict[str, Any] = {"requests": len(trace), "step_time": vars_of(step_time), "fleets": []}
    print(f"{len(trace)} requests; step {step_time}", file=sys.stderr)
    for workers in sorted({run["workers"] for run in reference["runs"]}):
        fleet = {"workers": workers, "ours": {}, "dynosim": theirs(reference, workers)}
        for policy in POLICIES:
            started_s = time.monotonic()
            summary = simulate(settings(args.trace, step_time, policy), trace, num_static=workers).summary
            fleet["ours"][policy] = {
                "ttft_mean_s": summary.ttft.mean_s,
                "ttft_p99_s": summary.ttft.p99_s,
                "e2e_mean_s": summary.e2e.mean_s,
                "cached_share": summary.cached_share,
                "wall_s": time.monotonic() - started_s,
            }
        fleet["ours_saves"] = saves(fleet["ours"]["round_robin"], fleet["ours"]["kv_aware"])
        fleet["dynosim_saves"] = saves(fleet["dynosim"]["round_robin"], fleet["dynosim"]["kv_router"])
        report["fleets"].append(fleet)
        print(line(fleet))
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1), encoding="utf-8")


def vars_of(step_time: StepTime) -> dict[str, float]:
    names = ("base_s", "per_prefill_s", "per_row_s", "per_kv_s")
    return {name: getattr(step_time, name) for name in names}


def settings(trace: Path, step_time: StepTime, policy: str) -> SimulationSettings:
    return SimulationSettings.model_validate(
        {
            "trace": {"path": trace},
            "replica": {"step_time": vars_of(step_time), **ENGINE},
            "scaling": {},
            "slo": {"ttft_s": 1.0},
            "routing": policy,
            "patience_s": 3600.0,
        }
    )


def theirs(reference: dict[str, Any], workers: int) -> dict[str, dict[str, float]]:
    """The mean over the repeats of each mode."""
    found: dict[str, dict[str, float]] = {}
    for mode in ("round_robin", "kv_router"):
        runs = [run for run in reference["runs"] if run["workers"] == workers and run["mode"] == mode]
        names = ("ttft_mean_s", "ttft_p99_s", "e2e_mean_s", "cached_share")
        found[mode] = {name: statistics.mean(run[name] for run in runs) for name in names}
    return found


def saves(plain: dict[str, float], aware: dict[str, float]) -> float:
    return 1.0 - aware["ttft_mean_s"] / plain["ttft_mean_s"]


def line(fleet: dict[str, Any]) -> str:
    ours = "  ".join(
        f"{name} {values['ttft_mean_s'] * 1000:.0f} ms ({values['cached_share']:.1%} cached)"
        for name, values in fleet["ours"].items()
    )
    theirs_text = "  ".join(
        f"{name} {values['ttft_mean_s'] * 1000:.0f} ms ({values['cached_share']:.1%} cached)"
        for name, values in fleet["dynosim"].items()
    )
    return (
        f"{fleet['workers']} workers\n  ours:    {ours}\n  dynosim: {theirs_text}\n"
        f"  mean TTFT saved over round robin: ours {fleet['ours_saves']:.1%}, dynosim {fleet['dynosim_saves']:.1%}"
    )


if __name__ == "__main__":
    main()
