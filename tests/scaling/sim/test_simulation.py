"""Whole simulations: requests are never lost from sight, sites fail over, fleets follow their load, files are checked."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from sixfold.core.cli import main
from sixfold.core.errors import ConfigError
from sixfold.scaling.sim.experiment import compare, make_trace, simulate
from sixfold.scaling.sim.request import Job, Outcome, TraceRequest
from sixfold.scaling.sim.routing import KvAware, LeastLoaded, PowerOfTwo, PrefixHash, RoundRobin
from sixfold.scaling.sim.settings import SimulationSettings, load_simulation
from sixfold.scaling.sim.simulation import History
from sixfold.scaling.sim.traces import read_trace, several_tenants, spiked, synthetic_day

ROOT = Path(__file__).parents[3]
MOONCAKE = ROOT / "bench/data/traces/mooncake_conversation.csv.gz"
AZURE = ROOT / "bench/data/traces/azure_llm_2023_conv.csv.gz"
ENGINE = {"base_s": 0.0065, "per_prefill_s": 2.17e-5, "per_kv_s": 4.1e-8}


def settings(**changes: Any) -> SimulationSettings:
    data: dict[str, Any] = {
        "trace": {"path": AZURE},
        "replica": {"step_time": {"base_s": 0.05, "per_prefill_s": 1e-4}, "max_step_tokens": 1000, "max_rows": 8},
        "scaling": {
            "min_replicas": 1,
            "max_replicas": 20,
            "concurrency_target": 4,
            "cold_start_s": 10,
            "scale_down_delay_s": 30,
            "window_s": 20,
        },
        "slo": {"ttft_s": 1.0},
    }
    return SimulationSettings.model_validate({**data, **changes})


def steady(rate_per_s: float, seconds: float, *, start_s: float = 0.0, origin: str = "") -> list[TraceRequest]:
    return [
        TraceRequest(arrived_s=start_s + n / rate_per_s, prompt_tokens=200, output_tokens=20, origin=origin)
        for n in range(int(rate_per_s * seconds))
    ]


def outcomes(history: History) -> dict[Outcome, int]:
    return {outcome: sum(job.outcome is outcome for job in history.jobs) for outcome in Outcome}


def test_a_fleet_grows_with_a_surge_and_shrinks_after_it() -> None:
    trace = [*steady(1, 60), *steady(30, 60, start_s=60), *steady(1, 240, start_s=120)]
    run = simulate(settings(), trace)
    sizes = [moment.num_ready for moment in run.history.moments]
    assert max(sizes) >= 6
    assert sizes[-1] <= 3
    assert run.summary.availability == 1.0
    assert all(reason for _, _, _, reason in run.history.decisions)


def test_replicas_are_paid_for_from_their_order_to_their_end() -> None:
    run = simulate(settings(), steady(1, 100), num_static=3)
    assert run.summary.gpu_hours == pytest.approx(3 * run.history.end_s / 3600)
    grown = simulate(settings(), steady(20, 100))
    paid = [moment.num_replicas for moment in grown.history.moments]
    assert grown.history.replica_seconds["site"] == pytest.approx(sum(paid) * 2.0, rel=0.1)


def test_from_zero_the_first_request_waits_one_cold_start() -> None:
    scaling = {"min_replicas": 0, "max_replicas": 2, "cold_start_s": 10, "scale_down_delay_s": 0, "window_s": 4}
    trace = [*steady(1, 1, start_s=3.0), *steady(1, 1, start_s=60.0)]
    run = simulate(settings(scaling=scaling), trace)
    waits = [job.ttft_s for job in run.history.jobs]
    assert all(wait is not None and 10.0 < wait < 12.5 for wait in waits)
    assert min(moment.num_replicas for moment in run.history.moments) == 0


def test_requests_of_a_lost_site_are_replayed_and_only_started_streams_are_lost() -> None:
    trace = sorted((*steady(4, 120, origin="eu"), *steady(4, 120, origin="us")), key=lambda request: request.arrived_s)
    world: dict[str, Any] = {
        "sites": {"eu": 1, "us": 1},
        "losses": [{"site": "eu", "at_s": 50, "duration_s": 30, "detect_s": 5}],
        "initial_replicas": 3,
        "scaling": {"min_replicas": 3, "max_replicas": 20, "concurrency_target": 8, "cold_start_s": 10},
    }
    run = simulate(settings(**world), trace)
    counts = outcomes(run.history)
    assert counts[Outcome.RUNNING] == 0
    assert 0 < counts[Outcome.LOST] < 20
    assert all(job.first_token_s is not None for job in run.history.jobs if job.outcome is Outcome.LOST)
    waited = [
        job.ttft_s or 0.0 for job in run.history.jobs if job.request.origin == "eu" and 50 < job.request.arrived_s < 55
    ]
    assert max(waited) >= 4.0  # whoever came before the loss was noticed
    resumed = simulate(settings(**world, replay_streams=True), trace)
    assert outcomes(resumed.history)[Outcome.ANSWERED] == len(trace)


def test_with_all_sites_lost_and_known_to_be_requests_fail_at_once() -> None:
    world: dict[str, Any] = {"losses": [{"site": "site", "at_s": 10, "duration_s": 20, "detect_s": 1}]}
    run = simulate(settings(**world), steady(2, 60))
    lost = [job for job in run.history.jobs if job.outcome is Outcome.LOST]
    assert lost
    assert all(9 <= job.request.arrived_s <= 30 for job in lost)
    assert run.history.jobs[-1].outcome is Outcome.ANSWERED


def test_the_same_seed_gives_the_same_figures() -> None:
    trace = steady(10, 60)
    assert simulate(settings(), trace).summary == simulate(settings(), trace).summary


def test_the_comparison_finds_the_smallest_fixed_fleet_that_does_as_well() -> None:
    trace = [*steady(1, 200), *steady(16, 100, start_s=200), *steady(1, 200, start_s=300)]
    frontier = compare(settings(initial_replicas=2), trace)
    assert frontier.equal is not None
    assert frontier.static[frontier.equal].attainment >= frontier.scaled.summary.attainment
    smaller = [summary for size, summary in frontier.static.items() if size < frontier.equal]
    assert smaller
    assert all(summary.attainment < frontier.scaled.summary.attainment for summary in smaller)


def test_cache_aware_routing_beats_round_robin_on_real_conversations() -> None:
    replica = {"step_time": ENGINE, "max_step_tokens": 8192, "cache_tokens": 1 << 20, "block_tokens": 512}
    trace = read_trace(MOONCAKE, limit=2000)

    def ttft_s(routing: str) -> float:
        run = simulate(settings(replica=replica, routing=routing, patience_s=3600), trace, num_static=4)
        return run.summary.ttft.mean_s

    assert ttft_s("kv_aware") < 0.9 * ttft_s("round_robin")


class Choosable:
    """A replica as a policy sees it."""

    def __init__(self, replica_id: str, num_running: int = 0, pending_units: float = 0.0, cached: int = 0) -> None:
        self.replica_id, self.num_running, self.pending_units, self._cached = (
            replica_id,
            num_running,
            pending_units,
            cached,
        )

    def cached_blocks(self, request: TraceRequest) -> int:
        return self._cached

    @property
    def num_cached_blocks(self) -> int:
        return self._cached


def test_each_policy_chooses_what_it_says() -> None:
    job = Job(TraceRequest(arrived_s=0, prompt_tokens=1000, output_tokens=1, blocks=(7, 8)))
    idle, busy, warm = Choosable("a"), Choosable("b", 5, 4000), Choosable("c", 1, 500, cached=2)
    turns = RoundRobin()
    assert [turns.choose(job, [idle, busy], 0.0).index for _ in range(3)] == [0, 1, 0]
    assert LeastLoaded().choose(job, [busy, warm, idle], 0.0).index == 2
    assert KvAware(500).choose(job, [idle, busy, warm], 0.0).index == 2  # 500 to do, and nothing of the prompt
    assert KvAware(500).choose(job, [idle, Choosable("b", 5, 4000, cached=2)], 0.0).index == 0
    drawn = PowerOfTwo(seed=0)
    assert sum(drawn.choose(job, [idle, busy], 0.0).index for _ in range(1000)) < 350
    places = [PrefixHash().choose(job, [idle, busy, warm], 0.0).index for _ in range(3)]
    assert len(set(places)) == 1


def test_traces_are_read_sorted_from_zero() -> None:
    azure, mooncake = read_trace(AZURE), read_trace(MOONCAKE, limit=100)
    assert (len(azure), len(mooncake)) == (19_366, 100)
    assert azure[0].arrived_s == mooncake[0].arrived_s == 0.0
    assert all(first.arrived_s <= second.arrived_s for first, second in itertools.pairwise(azure))
    assert len(mooncake[0].blocks) == 14
    assert sum(request.prompt_tokens for request in azure) / len(azure) == pytest.approx(1155, abs=1)


def test_longer_traces_keep_their_shape() -> None:
    hour = steady(1, 3600)
    day = synthetic_day(hour, hours=24, low=0.2, seed=1)
    night = sum(request.arrived_s < 4 * 3600 for request in day)
    noon = sum(12 * 3600 <= request.arrived_s < 16 * 3600 for request in day)
    assert 0.2 < night / noon < 0.5
    both = several_tenants(hour, 3, seed=1)
    assert len(both) == 3 * len(hour)
    more = spiked(hour, at_s=600, duration_s=60, factor=10, seed=1)
    assert sum(600 <= request.arrived_s < 660 for request in more) == 600


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a,b\n1,2\n", "Expected: TIMESTAMP"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,x,44\n", ":2: not a request"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no requests"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_with_what_is_expected(tmp_path: Path, text: str, hint: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=hint):
        read_trace(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "missing.csv")
    broken = tmp_path / "trace.csv.gz"
    broken.write_bytes(gzip.compress(bytes(range(256)) * 100)[:15])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(broken)


def test_the_command_prints_the_frontier_and_draws_the_same_picture_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    config = tmp_path / "simulation.yaml"
    data = settings(trace={"path": str(AZURE), "limit": 300}).model_dump(mode="json", exclude_unset=True)
    config.write_text(json.dumps(data), encoding="utf-8")
    pictures = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for picture in pictures:
        assert main(["simulate", str(config), "--plot", str(picture), "--decisions"]) == 0
    printed = capsys.readouterr().out
    for word in ("GPU-HOURS", "IN OBJECTIVE", "ANSWERED", "autoscaled", "fixed", "replicas:"):
        assert word in printed
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert main(["simulate", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["autoscaled"]["num_requests"] == 300


def test_a_mistake_in_a_simulations_file_is_named_with_its_line(tmp_path: Path) -> None:
    config = tmp_path / "simulation.yaml"
    config.write_text("trace: {path: x.csv}\nreplica: {step_times: {}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"simulation\.yaml:2.*step_time"):
        load_simulation(config)
    with pytest.raises(ValueError, match="no site 'mars'"):
        settings(losses=[{"site": "mars", "at_s": 1}])


@pytest.mark.parametrize("file", sorted((ROOT / "examples/simulate").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_examples_are_valid_and_their_traces_are_there(file: Path) -> None:
    found = load_simulation(file)
    small = found.model_copy(
        update={"trace": found.trace.model_copy(update={"limit": 50, "day": None, "spike": None, "tenants": 1})}
    )
    assert simulate(small, make_trace(small)).summary.num_requests == 50
