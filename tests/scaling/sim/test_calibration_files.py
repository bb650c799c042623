"""What the calibration scripts make of a stored measurement, without measuring: `--from FILE`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sixfold.scaling.autoscale.step_time import StepTime, attended_tokens
from sixfold.scaling.sim.replica import ReplicaProfile
from sixfold.scaling.sim.request import TraceRequest
from sixfold.scaling.sim.routing import RoundRobin
from sixfold.scaling.sim.simulation import Rules, Simulation
from sixfold.scaling.sim.site import Site
from sixfold.scaling.spec import ScalingSpec

BENCH = Path(__file__).parents[3] / "bench"
STEP = StepTime(base_s=0.04, per_prefill_s=1e-3, per_row_s=5e-4, per_kv_s=1e-5, per_prefill_kv_s=1e-6)
OVERHEAD_S = 0.004
KIND = {
    "name": "chats", "first_tokens": [200, 200], "growth_tokens": [64, 64], "output_tokens": [4, 4],
    "num_turns": [4, 4], "gap_s": [1, 1],
}  # fmt: skip


def judged(script: str, measurement: dict[str, Any], folder: Path) -> dict[str, Any]:
    file = folder / "measurement.json"
    file.write_text(json.dumps({"measurement": measurement}), encoding="utf-8")
    command = [sys.executable, str(BENCH / script), "--from", str(file)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def step_row(*, prefill: int = 0, rows: int = 0, kv: int = 0) -> list[float]:
    prefill_kv = attended_tokens(prefill, 0)
    seconds = STEP.seconds(prefill_tokens=prefill, decode_rows=rows, kv_tokens=kv, prefill_kv_tokens=prefill_kv)
    return [0.0, seconds, prefill, prefill_kv, rows, kv, 1024, 0]


def experiments() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for prompt in (16, 64, 256, 500):
        step = step_row(prefill=prompt)
        found.append({"requests": [[0.0, prompt, 1, step[1] + OVERHEAD_S, step[1] + OVERHEAD_S, 0]], "steps": [step]})
    for rows, context in ((1, 20), (1, 300), (4, 100), (8, 300)):
        steps = [step_row(rows=rows, kv=rows * (context + place)) for place in range(5)]
        found.append({"requests": [[0.0, context, 6, 0.1, 0.5, 0]] * rows, "steps": steps})
    return found


def held_out(*, slower: float) -> dict[str, Any]:
    """Requests that took what the simulator says, but for a factor."""
    profile = ReplicaProfile(step_time=STEP, max_step_tokens=600, overhead_s=OVERHEAD_S)
    trace = [
        TraceRequest(arrived_s=0.7 * number, prompt_tokens=50 + 13 * number, output_tokens=10) for number in range(20)
    ]
    site = Site("site", profile, ScalingSpec(min_replicas=1, max_replicas=1), RoundRobin(), num_initial=1, now_s=0.0)
    requests: list[list[float]] = []
    for job in Simulation([site], Rules()).run(trace).jobs:
        assert job.ttft_s is not None and job.e2e_s is not None
        request = job.request
        times = [job.ttft_s * slower, job.e2e_s * slower]
        requests.append([request.arrived_s, request.prompt_tokens, request.output_tokens, *times, 0])
    return {"workload": {"name": "chat"}, "requests": requests, "steps": [step_row(rows=2, kv=100)]}


@pytest.mark.parametrize(("slower", "kept"), [(1.0, True), (1.5, False)])
def test_the_error_of_a_stored_measurement_is_that_of_the_simulator(slower: float, kept: bool, tmp_path: Path) -> None:
    measurement = {"experiments": experiments(), "held_out": [held_out(slower=slower)], "max_step_tokens": 600}
    result = judged("calibrate.py", measurement, tmp_path)
    assert result["step_time"]["base_s"] == pytest.approx(STEP.base_s)
    assert result["step_time"]["per_prefill_kv_s"] == pytest.approx(STEP.per_prefill_kv_s, rel=1e-3)
    assert result["overhead_s"] == pytest.approx(OVERHEAD_S)
    (row,) = result["held_out"]
    assert row["e2e_error"] == pytest.approx(1 / slower - 1, abs=1e-4)
    assert row["ttft_error"] == pytest.approx(1 / slower - 1, abs=1e-4)
    assert row["steps_error"] == pytest.approx(0.0, abs=1e-4)
    assert result["e2e"]["kept"] is kept


def plays(ttft_s: dict[str, float]) -> list[dict[str, Any]]:
    """Five conversations of four turns, so that turns take both replicas; each as long as its policy says, and some noise."""
    conversations = [number % 5 for number in range(20)]
    return [
        {
            "kind": "chats",
            "round": 0,
            "policy": policy,
            "conversations": conversations,
            "requests": [
                [1.5 * number, 200 + 64 * (number // 5), 4, seconds + 0.01 * (number % 3), seconds + 0.3, 0]
                for number in range(20)
            ],
        }
        for policy, seconds in ttft_s.items()
    ]


@pytest.mark.parametrize(
    ("ttft_s", "ties", "preserved"),
    [
        ({"round_robin": 0.9, "prefix": 0.2, "kv": 0.2}, {"prefix - kv"}, True),
        ({"round_robin": 0.2, "prefix": 0.9, "kv": 0.9}, {"prefix - kv"}, False),
        ({"round_robin": 0.9, "prefix": 0.2, "kv": 0.3}, set[str](), True),  # the simulator holds the last two equal
    ],
    ids=["as simulated", "the other way round", "more than the simulator tells"],
)
def test_a_ranking_is_preserved_where_the_simulator_orders_what_is_no_tie_as_measured(
    ttft_s: dict[str, float], ties: set[str], preserved: bool, tmp_path: Path
) -> None:
    measurement = {
        "experiments": experiments(), "plays": plays(ttft_s), "kinds": [KIND], "max_step_tokens": 600,
        "cache_tokens": 100_000, "block_tokens": 16,
    }  # fmt: skip
    result = judged("policy_ranking.py", measurement, tmp_path)
    order = result["workloads"][0]["order"]["ttft_s"]
    assert {pair["pair"] for pair in order["pairs"] if pair["tie"]} == ties
    assert order["measured"][-1] == ("round_robin" if preserved else "kv")
    assert order["preserved"] is preserved
    simulated = result["workloads"][0]["simulated"]
    assert simulated["prefix"]["cached_share"] > simulated["round_robin"]["cached_share"] > 0.0


def test_a_ranking_of_few_conversations_is_no_ranking(tmp_path: Path) -> None:
    few = [
        {**play, "conversations": [number % 3 for number in range(20)]}
        for play in plays({"round_robin": 0.2, "prefix": 0.9})
    ]
    measurement = {
        "experiments": experiments(), "plays": few, "kinds": [KIND], "max_step_tokens": 600, "cache_tokens": 100_000,
        "block_tokens": 16,
    }  # fmt: skip
    result = judged("policy_ranking.py", measurement, tmp_path)
    (pair,) = result["workloads"][0]["order"]["ttft_s"]["pairs"]
    assert pair["tie"]


def test_a_file_of_another_kind_is_refused_with_what_is_expected(tmp_path: Path) -> None:
    file = tmp_path / "old.json"
    file.write_text('{"step_time": {}}', encoding="utf-8")
    command = [sys.executable, str(BENCH / "calibrate.py"), "--from", str(file)]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "calibrate.py --out" in done.stderr
