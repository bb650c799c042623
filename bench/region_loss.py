"""Loses a region of a real Ray cluster under open-loop load, and says what clients saw of it.

Three nodes on this machine (hub, us, eu), four replicas over two regions, a gateway, Poisson arrivals of plain and streamed
completions whose texts are known beforehand. After a third of the time every process of the region ``us`` is killed at once;
after two thirds an empty node comes back. ``make chaos`` runs it. The model is tiny, with random weights: what is measured is
failing over, not speed.

    python bench/region_loss.py --seconds 60 --rate 4

Prints a table, writes ``bench/results/DATE-region-loss.{json,svg}``, and exits with 1 if a client saw a failure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from sixfold.scaling.cluster.document import DeployedService
from sixfold.scaling.cluster.engine import RayEngine
from sixfold.scaling.cluster.replica import ReplicaSettings
from sixfold.scaling.registry import LeaseView, SqliteRegistry
from sixfold.scaling.registry_settings import RegistryPlace
from sixfold.scaling.spec import PlacementSpec, ServiceSpec
from tests.plugins.llm.conftest import write_model
from tests.scaling.cluster.ray_cluster import LabelledCluster, labelled_cluster

MODEL = "tiny"
PLACES = {"us": 2, "eu": 4}
NUM_REPLICAS = 4
NUM_PROMPTS = 24
START_TIMEOUT_S = 180.0
HARMED = 3.0
"""A request was harmed when it took so many times as long as the slowest before the loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request: when it was due, how long its whole answer took, and what was wrong, if anything."""

    due_s: float
    took_s: float
    is_stream: bool
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """Replicas with a lease, by region, at one moment."""

    at_s: float
    regions: dict[str, int]


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the load")
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, labelled_cluster(PLACES) as cluster:
        folder = Path(name)
        engine, registry = deploy(cluster, folder)
        async with gateway(folder) as url:
            await until(lambda: sum(census(registry).values()) == NUM_REPLICAS, START_TIMEOUT_S)
            expected = await known_answers(url)
            print(f"{NUM_REPLICAS} replicas: {census(registry)}", flush=True)
            samples, counts, loss_s, return_s = await load(url, expected, cluster, registry, args)
        engine.apply([])
        await until(lambda: not census(registry), START_TIMEOUT_S)
    return report(samples, counts, loss_s, return_s, args)


def deploy(cluster: LabelledCluster, folder: Path) -> tuple[RayEngine, SqliteRegistry]:
    """Says what shall run, and where replicas publish themselves."""
    source = write_model(folder / "model", "llama-long")
    options = {"dtype": "float32", "kv_cache_bytes": 8 << 20}
    models = {MODEL: {"source": f"file:{source}", "options": options}}
    settings = ReplicaSettings(
        config=json.dumps({"models": models, "server": {"host": "127.0.0.1", "port": 0}}),
        registry=RegistryPlace(path=folder / "registry.db"),
    )
    engine = RayEngine(cluster.head_url)
    engine.apply([service_of(region, settings) for region in PLACES])
    return engine, SqliteRegistry(folder / "registry.db")


def service_of(home: str, settings: ReplicaSettings) -> DeployedService:
    """Half of the replicas: at home, and elsewhere while home is lost."""
    (elsewhere,) = set(PLACES) - {home}
    placement = PlacementSpec(labels={"region": home}, fallbacks=({"region": elsewhere},), num_gpus=1)
    spec = ServiceSpec(model=f"{MODEL}-{home}", placement=placement)
    return DeployedService(spec=spec, replicas=settings, num_replicas=NUM_REPLICAS // 2)


@asynccontextmanager
async def gateway(folder: Path) -> AsyncIterator[str]:
    """A gateway over the registry."""
    config = folder / "gateway.yaml"
    config.write_text(
        json.dumps(
            {
                "registry": {"path": str(folder / "registry.db"), "ttl_s": 2.0},
                "server": {"host": "127.0.0.1", "port": 0},
                "resume_streams": True,
                "admission": {"hold_s": 20.0},
                "routing": {"policy": "power_of_two"},
            }
        )
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sixfold.core.cli", "gateway", str(config)), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        first = (await process.stdout.readline()).decode()
        yield first.rsplit(" on ", 1)[1].strip()
    finally:
        process.terminate()
        await process.wait()


async def known_answers(url: str) -> list[tuple[dict[str, Any], str]]:
    """Greedy requests with the text that must come."""
    draw = random.Random(1)
    words = "ward night pulse fever dose chart light rest".split()
    known: list[tuple[dict[str, Any], str]] = []
    async with httpx.AsyncClient(timeout=START_TIMEOUT_S) as http:
        for number in range(NUM_PROMPTS):
            body = {
                "model": MODEL,
                "prompt": f"{number} " + " ".join(draw.choices(words, k=12)),
                "max_tokens": draw.randint(8, 64),
                "temperature": 0,
                "ignore_eos": True,
            }
            answer = (await http.post(f"{url}/v1/completions", json=body)).raise_for_status()
            known.append((body, answer.json()["choices"][0]["text"]))
    return known


async def load(
    url: str,
    expected: list[tuple[dict[str, Any], str]],
    cluster: LabelledCluster,
    registry: SqliteRegistry,
    args: argparse.Namespace,
) -> tuple[list[Sample], list[Census], float, float]:
    """Open loop: requests start when they are due, however late the answers before them are."""
    draw = random.Random(args.seed)
    started_s = time.monotonic()

    def now_s() -> float:
        return time.monotonic() - started_s

    counts: list[Census] = []
    view = LeaseView(2.0)

    async def watch() -> None:
        while True:
            regions: dict[str, int] = {}
            for record in view.observe(await asyncio.to_thread(registry.rows), now_s()).values():
                regions[record.region] = regions.get(record.region, 0) + 1
            counts.append(Census(at_s=now_s(), regions=regions))
            await asyncio.sleep(0.25)

    async def at(due_s: float, act: Callable[[], None]) -> float:
        await asyncio.sleep(due_s - now_s())
        happens_s = now_s()
        await asyncio.to_thread(act)
        return happens_s

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60.0, limits=limits) as http:
        watching = asyncio.create_task(watch())
        loss = asyncio.create_task(at(args.seconds / 3, lambda: cluster.lose("us")))
        comeback = asyncio.create_task(at(args.seconds * 2 / 3, lambda: cluster.add("us", PLACES["us"])))
        asked: list[asyncio.Task[Sample]] = []
        due_s = draw.expovariate(args.rate)
        while due_s < args.seconds:
            await asyncio.sleep(max(due_s - now_s(), 0.0))
            body, text = draw.choice(expected)
            asked.append(asyncio.create_task(ask(http, body, text, due_s, now_s, is_stream=draw.random() < 0.5)))
            due_s += draw.expovariate(args.rate)
        samples = [await task for task in asked]
        times = await loss, await comeback
        watching.cancel()
    return samples, counts, *times


async def ask(
    http: httpx.AsyncClient,
    body: dict[str, Any],
    text: str,
    due_s: float,
    now_s: Callable[[], float],
    *,
    is_stream: bool,
) -> Sample:
    error: str | None = None
    try:
        if is_stream:
            got = await streamed(http, body)
        else:
            response = await http.post("/v1/completions", json=body)
            if response.status_code != 200:
                raise RuntimeError(f"{response.status_code}: {response.text[:300]}")
            got = response.json()["choices"][0]["text"]
        if got != text:
            error = f"another text: {got[:60]!r} instead of {text[:60]!r}"
    except (httpx.HTTPError, RuntimeError, ValueError, KeyError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    return Sample(due_s=due_s, took_s=now_s() - due_s, is_stream=is_stream, error=error)


async def streamed(http: httpx.AsyncClient, body: dict[str, Any]) -> str:
    parts: list[str] = []
    async with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread())[:300]!r}")
        async for line in response.aiter_lines():
            data = line.removeprefix("data: ")
            if not line or data == "[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                raise RuntimeError(f"in the stream: {event['error']}")
            parts += [choice["text"] for choice in event["choices"]]
    return "".join(parts)


def census(registry: SqliteRegistry) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in registry.rows():
        counts[row.record.region] = counts.get(row.record.region, 0) + 1
    return counts


async def until(holds: Callable[[], bool], timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.2)


def report(
    samples: list[Sample], counts: list[Census], loss_s: float, return_s: float, args: argparse.Namespace
) -> int:
    failed = [sample for sample in samples if sample.error is not None]
    before = sorted(sample.took_s for sample in samples if sample.due_s + sample.took_s < loss_s)
    in_flight = [sample for sample in samples if sample.due_s < loss_s < sample.due_s + sample.took_s]
    after = [sample for sample in samples if loss_s <= sample.due_s]
    limit_s = HARMED * before[-1]
    harmed = [sample for sample in samples if sample.due_s + sample.took_s >= loss_s and sample.took_s > limit_s]
    failover_s = max((sample.due_s - loss_s for sample in harmed), default=0.0)
    lost = sum(counts[0].regions.values())
    fewer_s = next((c.at_s for c in counts if c.at_s > loss_s and sum(c.regions.values()) < lost), loss_s)
    whole_s = next((c.at_s - loss_s for c in counts if c.at_s > fewer_s and sum(c.regions.values()) >= lost), None)
    rows = [
        ("requests", f"{len(samples)}, of which {len(in_flight)} in flight at the loss"),
        ("failures that clients saw", str(len(failed))),
        ("before: p50, slowest", f"{before[len(before) // 2]:.2f} s, {before[-1]:.2f} s"),
        ("in flight at the loss: slowest", f"{max((s.took_s for s in in_flight), default=0.0):.2f} s"),
        ("after: slowest", f"{max((s.took_s for s in after), default=0.0):.2f} s"),
        (f"last arrival that took over {limit_s:.1f} s", f"{failover_s:.2f} s after the loss"),
        ("all replicas again", "not within the run" if whole_s is None else f"{whole_s:.1f} s after the loss"),
    ]
    print("\n| | |\n| --- | --- |")
    for name, value in rows:
        print(f"| {name} | {value} |")
    for sample in failed:
        print(f"failed at {sample.due_s:.2f} s: {sample.error}")
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}-region-loss"
    stem.with_suffix(".json").write_text(
        json.dumps(
            {
                "command": " ".join(sys.argv),
                "loss_s": loss_s,
                "return_s": return_s,
                "summary": dict(rows),
                "samples": [asdict(sample) for sample in samples],
                "replicas": [asdict(count) for count in counts],
            }
        )
    )
    draw_timeline(stem.with_suffix(".svg"), samples, counts, loss_s, return_s)
    print(f"\nwritten: {stem}.json, {stem}.svg")
    return 1 if failed else 0


def draw_timeline(path: Path, samples: list[Sample], counts: list[Census], loss_s: float, return_s: float) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    figure, (upper, lower) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 4.5), height_ratios=(3, 1))
    kinds = (
        ("whole answers", "tab:blue", [s for s in samples if s.error is None and not s.is_stream]),
        ("streams", "tab:green", [s for s in samples if s.error is None and s.is_stream]),
        ("failures", "tab:red", [s for s in samples if s.error is not None]),
    )
    for name, color, kind in kinds:
        upper.scatter([s.due_s for s in kind], [s.took_s for s in kind], s=8, color=color, label=f"{name}: {len(kind)}")
    upper.set_ylabel("seconds to the whole answer")
    upper.legend(fontsize=8)
    for region, color in (("us", "tab:orange"), ("eu", "tab:purple")):
        lower.step([c.at_s for c in counts], [c.regions.get(region, 0) for c in counts], color=color, label=region)
    lower.set_ylabel("replicas")
    lower.set_xlabel("seconds")
    lower.legend(fontsize=8)
    for axes in (upper, lower):
        axes.axvline(loss_s, color="black", linestyle="--", linewidth=0.8)
        axes.axvline(return_s, color="grey", linestyle=":", linewidth=0.8)
    figure.suptitle("The region us is lost (dashed) and comes back empty (dotted)", fontsize=10)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
