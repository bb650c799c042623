"""Fits the simulator's step time to our own runtime over HTTP, then compares simulated with measured times on other workloads.

    python bench/calibrate.py --out results/calibrate.json      # measures, fits, compares
    python bench/calibrate.py --from results/calibrate.json     # fits and compares again, without measuring

What is fitted: single steps of prompts of several lengths alone and of several sequences side by side, as the server's live view
tells them. What is held out: requests of mixed lengths that arrive at random, in rounds, with the steps of the fit measured again
after each: a machine's speed drifts within minutes, and what is compared must have seen the same machine. Measured is one server
with one replica, without prefix cache and guesses. The file holds every request and every step, so that another model can be
judged by it.
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
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import report
import uvloop
from live_steps import TOLD_AFTER_S, Step, StepWatcher, watched
from servers import OtherLoad, RunningServer, Target
from targets import BENCH, OFFLINE, SIXFOLD, WORK, pull_demo_models, work_folder
from timed_requests import Timed, Workload, as_trace, at_their_times, random_tokens, send, side_by_side

from sixfold.scaling.autoscale.step_time import Measured, StepTime, fit
from sixfold.scaling.sim.outcome import Summary, summarize
from sixfold.scaling.sim.replica import ReplicaProfile
from sixfold.scaling.sim.routing import RoundRobin
from sixfold.scaling.sim.simulation import Rules, Simulation
from sixfold.scaling.sim.site import Site
from sixfold.scaling.spec import ScalingSpec, Slo

PROMPTS = (16, 40, 64, 128, 200, 256, 384, 500)
SIDE_BY_SIDE = ((1, 16), (1, 256), (2, 64), (4, 64), (4, 256), (8, 64), (8, 256))
OUTPUT_TOKENS = 32
FEWEST = 5
"""Requests of a held-out workload, however slow the machine is."""
QUICK_PROMPTS = (16, 96)
QUICK_SIDE_BY_SIDE = ((1, 16), (2, 64))
QUICK_OUTPUT_TOKENS = 8
KINDS = (
    ("chat", (32, 256), (16, 64)),
    ("code", (128, 384), (4, 24)),
    ("labels", (64, 384), (1, 4)),
    ("stories", (16, 64), (64, 160)),
)
"""Names of held-out workloads with the lengths of their prompts and answers."""
GOALS = {"ttft": 0.25, "e2e": 0.15}
"""The largest error of a workload's mean."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=2, help="of each point of the fit, before the first round")
    parser.add_argument("--rounds", type=int, default=2, help="of the held-out workloads")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each held-out workload in each round")
    parser.add_argument(
        "--load", type=float, nargs="+", default=[0.3, 0.6], help="shares of what the fit says it can do"
    )
    parser.add_argument("--quick", action="store_true", help="few points and short answers: shows that it runs")
    parser.add_argument("--from", dest="file", type=Path, help="a file of an earlier run; nothing is measured")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    measurement = read(args.file) if args.file is not None else measured(args)
    result = {"result": judge(measurement), "measurement": measurement}
    print(json.dumps(result["result"], indent=1))
    if args.out is not None:
        args.out.write_text(one_row_a_line(result), encoding="utf-8")


def read(file: Path) -> dict[str, Any]:
    """The measurement of an earlier run."""
    try:
        measurement: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["measurement"]
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(
            f"{file}: no file that calibrate.py --out wrote since it stores requests ({error!r})."
        ) from None
    return measurement


def one_row_a_line(result: dict[str, Any]) -> str:
    """JSON with the innermost lists on one line each."""
    return re.sub(r"\[\s+([-\d.,\se]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", json.dumps(result, indent=1))


def measured(args: argparse.Namespace) -> dict[str, Any]:
    # Servers are in sessions of their own, so nothing but this process ends them: SIGTERM must unwind as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda _signum, _frame: sys.exit(143))
    work_folder()
    model = pull_demo_models(BENCH.parent / "examples" / "demo.yaml")["chat"]
    with RunningServer(target(model, args.dtype), WORK) as server:
        server.wait_ready()
        load = OtherLoad(server)
        measurement = uvloop.run(measure(server.port, args))
        measurement["other_load"] = load.share()
    return {"dtype": args.dtype, **measurement, "machine": report.machine()}


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


async def measure(port: int, args: argparse.Namespace) -> dict[str, Any]:
    """What is fitted, and then what is held out."""
    draws = random.Random(0)
    await side_by_side(port, [(64, 8)] * 4, draws)
    async with watched(port, "chat") as watcher:
        experiments = await fitted(port, watcher, draws, repeats=args.repeats, quick=args.quick)
        budget = int(gauge(port, "step_budget_units"))
        step_time = fit_steps(experiments)
        held_out = [HeldOut(workload) for workload in workloads(step_time, args.load)]
        for _round in range(args.rounds):
            for each in held_out:
                start_s = time.perf_counter()
                requests = await at_random(port, each.workload, args.seconds, draws)
                await asyncio.sleep(TOLD_AFTER_S)
                each.add(requests, watcher.between(start_s, time.perf_counter()))
                print(f"measured {each.workload.name}: {len(requests)} requests", file=sys.stderr, flush=True)
            experiments += await fitted(port, watcher, draws, repeats=1, quick=args.quick)
    return {"max_step_tokens": budget, "experiments": experiments, "held_out": [each.facts for each in held_out]}


@dataclass(slots=True)
class HeldOut:
    """What was measured of one workload in all rounds, as if one came an hour after the other."""

    workload: Workload
    requests: list[Timed] = field(default_factory=list[Timed])
    steps: list[Step] = field(default_factory=list[Step])
    _num_rounds: int = 0

    def add(self, requests: Sequence[Timed], steps: Sequence[Step]) -> None:
        """A round."""
        later_s = 3600.0 * self._num_rounds
        self._num_rounds += 1
        self.requests += [replace(each, sent_s=each.sent_s + later_s) for each in requests]
        self.steps += steps

    @property
    def facts(self) -> dict[str, Any]:
        """For the file."""
        return {
            "workload": asdict(self.workload),
            "requests": [each.row for each in self.requests],
            "steps": [step.row for step in self.steps],
        }


async def fitted(
    port: int, watcher: StepWatcher, draws: random.Random, *, repeats: int, quick: bool
) -> list[dict[str, Any]]:
    """Prompts alone, and several sequences side by side, with their steps."""
    output = QUICK_OUTPUT_TOKENS if quick else OUTPUT_TOKENS
    found: list[dict[str, Any]] = []
    for _ in range(repeats):
        shapes = [[(prompt, output)] * rows for rows, prompt in (QUICK_SIDE_BY_SIDE if quick else SIDE_BY_SIDE)]
        shapes += [[(prompt, 1)] for prompt in (QUICK_PROMPTS if quick else PROMPTS)]
        for shape in shapes:
            start_s = time.perf_counter()
            requests = await side_by_side(port, shape, draws)
            await asyncio.sleep(TOLD_AFTER_S)
            steps = watcher.between(start_s, time.perf_counter())
            found.append({"requests": [each.row for each in requests], "steps": [step.row for step in steps]})
    return found


def fit_steps(experiments: Sequence[dict[str, Any]]) -> StepTime:
    """The model of what was measured."""
    return fit(list(points(experiments)))


def points(experiments: Iterable[dict[str, Any]]) -> Iterable[Measured]:
    """Each step that prefills by itself; those that only decode added up by their rows, as they are many and alike."""
    for experiment in experiments:
        alike: dict[int, list[Step]] = defaultdict(list)
        for step in map(Step.of_row, experiment["steps"]):
            if step.prefill_tokens:
                yield step.measured
            else:
                alike[step.decode_rows].append(step)
        for steps in alike.values():
            yield Measured(
                steps=len(steps),
                prefill_tokens=0,
                decode_rows=sum(step.decode_rows for step in steps),
                kv_tokens=sum(step.kv_tokens for step in steps),
                seconds=sum(step.seconds for step in steps),
            )


def overhead(experiments: Iterable[dict[str, Any]]) -> float:
    """What a request takes beside its steps: of prompts alone, the time to the first token without the steps'."""
    rests = [
        Timed.of_row(each["requests"][0]).first_s - sum(Step.of_row(row).seconds for row in each["steps"])
        for each in experiments
        if len(each["requests"]) == 1 and Timed.of_row(each["requests"][0]).output_tokens == 1
    ]
    return max(0.0, statistics.median(rests))


def workloads(step_time: StepTime, loads: Sequence[float]) -> list[Workload]:
    """Mixed lengths at shares of what one replica could do, were it never idle and always eight abreast."""
    found: list[Workload] = []
    for name, prompt, output in KINDS:
        mean_prompt, mean_output = sum(prompt) / 2, sum(output) / 2
        step_s = step_time.seconds(prefill_tokens=0, decode_rows=8, kv_tokens=8 * mean_prompt)
        prefill_s = mean_prompt * (step_time.per_prefill_s + step_time.per_prefill_kv_s * mean_prompt / 2)
        request_s = prefill_s + mean_output * step_s / 8
        found += [
            Workload(
                name=f"{name} at {load:g}", rate_per_s=load / request_s, prompt_tokens=prompt, output_tokens=output
            )
            for load in loads
        ]
    return found


async def at_random(port: int, workload: Workload, seconds: float, draws: random.Random) -> list[Timed]:
    """Sends the requests of a workload, whether earlier ones are answered or not."""
    at_s, arrivals = draws.expovariate(workload.rate_per_s), list[tuple[float, list[int], int]]()
    while at_s <= seconds or len(arrivals) < FEWEST:
        prompt = random_tokens(draws, draws.randint(*workload.prompt_tokens))
        arrivals.append((at_s, prompt, draws.randint(*workload.output_tokens)))
        at_s += draws.expovariate(workload.rate_per_s)
    return await at_their_times(
        [(at_s, lambda p=prompt, o=output: send(port, p, o)) for at_s, prompt, output in arrivals]
    )


def gauge(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text = response.read().decode()
    found = re.search(rf"^sixfold:{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found.group(1))


def judge(measurement: dict[str, Any]) -> dict[str, Any]:
    """Fits, simulates what was held out, and compares."""
    experiments = measurement["experiments"]
    step_time = fit_steps(experiments)
    fitted_points = list(points(experiments))
    profile = ReplicaProfile(
        step_time=step_time, max_step_tokens=measurement["max_step_tokens"], overhead_s=overhead(experiments)
    )
    rows = [compare(each, profile) for each in measurement["held_out"]]
    result: dict[str, Any] = {
        "step_time": asdict(step_time),
        "overhead_s": profile.overhead_s,
        "max_step_tokens": profile.max_step_tokens,
        "fit_error": statistics.mean(abs(step_time.predict(each) / each.seconds - 1) for each in fitted_points),
        "held_out": rows,
    }
    for name, goal in GOALS.items():
        errors = [abs(row[f"{name}_error"]) for row in rows]
        result[name] = {
            "mean": statistics.mean(errors),
            "worst": max(errors),
            "goal": goal,
            "kept": max(errors) <= goal,
        }
    return result


def compare(held_out: dict[str, Any], profile: ReplicaProfile) -> dict[str, Any]:
    """The same requests at the same times, simulated. Errors are signed: above 0 the simulation is too slow.

    ``steps_error`` is that of the time of all steps as they were: what remains of the others' is how steps are filled.
    """
    requests = [Timed.of_row(row) for row in held_out["requests"]]
    steps = [Step.of_row(row).measured for row in held_out["steps"]]
    summary = simulated(requests, profile)
    row: dict[str, Any] = {"workload": held_out["workload"]["name"], "num_requests": len(requests)}
    for name, ours, theirs in (
        ("ttft", summary.ttft, [each.first_s for each in requests]),
        ("e2e", summary.e2e, [each.last_s for each in requests]),
    ):
        mean_s = statistics.mean(theirs)
        row[f"{name}_measured_s"], row[f"{name}_simulated_s"] = mean_s, ours.mean_s
        row[f"{name}_error"] = ours.mean_s / mean_s - 1
        row[f"{name}_p95_measured_s"] = sorted(theirs)[int(0.95 * len(theirs))]
        row[f"{name}_p95_simulated_s"] = ours.p95_s
    row["steps_error"] = sum(map(profile.step_time.predict, steps)) / sum(step.seconds for step in steps) - 1
    return row


def simulated(requests: Sequence[Timed], profile: ReplicaProfile) -> Summary:
    scaling = ScalingSpec(min_replicas=1, max_replicas=1)
    site = Site("site", profile, scaling, RoundRobin(), num_initial=1, now_s=0.0)
    history = Simulation([site], Rules(patience_s=3600.0)).run(as_trace(requests))
    return summarize(history, Slo(ttft_s=1.0), 1.0)


if __name__ == "__main__":
    main()
