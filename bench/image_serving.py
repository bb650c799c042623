"""Serves one stream of picture requests in three ways, in one process: the stock pipeline behind a lock, static batches of
the stock pipeline, and Sixfold's engine. No HTTP: all three would pay the same for it.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from sixfold.core.batching.manager import Limits
from sixfold.core.batching.model import Finish, ModelInfo, StepRange
from sixfold.core.batching.parked import PipelineSide
from sixfold.core.messages import Failed, Request, Usage
from sixfold.core.rendezvous.calls import CallOwner, ModuleCall
from sixfold.core.rendezvous.graphs import RowGraphs
from sixfold.core.rendezvous.lane import Lane
from sixfold.core.rendezvous.model import TorchPipelineModel
from sixfold.core.rendezvous.scoped import PipelineScope
from sixfold.core.rendezvous.warm_up import WarmUpSide
from sixfold.core.runtime.local_replica import LocalReplica
from sixfold.plugins.image.rules import plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One picture to draw.

    Attributes:
        arrival_s: After the start.
        num_steps: Denoising steps.
        guidance: Its guidance scale.
        size: Width and height.
        seed: Of its noise and prompt.
    """

    arrival_s: float
    num_steps: int
    guidance: float
    size: int
    seed: int

    @property
    def static_key(self) -> tuple[int, float, int]:
        """What the stock pipeline needs equal to draw several at once."""
        return (self.num_steps, self.guidance, self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A pipeline and how to ask it for a job.

    Attributes:
        pipeline: Stock, loaded.
        prompt: Keyword arguments in place of the prompt, for seeds: rows in their order.
        device: Where it is.
        guidance: Name of the guidance argument.
    """

    pipeline: Any
    prompt: Callable[[Sequence[int]], dict[str, Any]]
    device: torch.device
    guidance: str = "guidance_scale"

    def arguments(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """Of one call of the pipeline that draws jobs of one static key."""
        first = jobs[0]
        return {
            **self.prompt([job.seed for job in jobs]),
            "num_inference_steps": first.num_steps,
            self.guidance: first.guidance,
            "height": first.size,
            "width": first.size,
            "generator": [torch.Generator().manual_seed(job.seed) for job in jobs],
            "output_type": "np",
        }

    def draw(self, jobs: Sequence[Job]) -> Any:
        """With the stock pipeline, and a scheduler of its own as diffusers' server example does."""
        pipeline = copy.copy(self.pipeline)
        pipeline.scheduler = copy.deepcopy(self.pipeline.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(**self.arguments(jobs)).images


def poisson_jobs(
    count: int,
    rate_per_s: float,
    *,
    steps: Sequence[int],
    guidances: Sequence[float],
    sizes: Sequence[int],
    seed: int = 1,
) -> list[Job]:
    """Jobs with exponential gaps and mixed work, the same for every way of serving."""
    chance = random.Random(seed)
    now_s = 0.0
    jobs: list[Job] = []
    for index in range(count):
        now_s += chance.expovariate(rate_per_s)
        jobs.append(
            Job(
                arrival_s=now_s,
                num_steps=chance.choice(steps),
                guidance=chance.choice(guidances),
                size=chance.choice(sizes),
                seed=index,
            )
        )
    return jobs


class Nothing(msgspec.Struct, frozen=True):
    """Jobs and pictures stay in this process."""


class EngineModel(TorchPipelineModel[Nothing, Nothing]):
    """Draws jobs by the engine that serves ``image/diffusers``."""

    def __init__(
        self, subject: Subject, jobs: Mapping[str, Job], max_step_units: int, graphs: RowGraphs | None = None
    ) -> None:
        super().__init__(subject.device, graphs=graphs)
        self._subject = subject
        self._jobs = jobs
        self._lane = Lane("decode", subject.device, num_threads=1)
        self._scope = PipelineScope(plan(16), self._lane)
        self._max_units = max_step_units
        self.whole_jobs = True
        self.pictures: dict[str, Any] = {}
        self.first_step_s: dict[str, float] = {}

    @property
    def info(self) -> ModelInfo:
        return ModelInfo()

    @property
    def step_range(self) -> StepRange:
        return StepRange(
            min_units=1, initial_units=self._max_units, max_units=self._max_units, whole_jobs=self.whole_jobs
        )

    def estimate_units(self, request: Request[Nothing]) -> int:
        return 1

    def warm_up(self) -> None:
        """As the server's start does it."""
        job = next(iter(self._jobs.values()))
        side = WarmUpSide(self.forward)
        scoped = self._scope.copy_for(self._subject.pipeline, side)
        scoped(**self._subject.arguments([dataclasses.replace(job, num_steps=2)]))
        assert side.last_call is not None
        self.measure_company(side.last_call, max_units=self._max_units, max_seconds=20.0)
        self.num_calls = self.num_forwards = self.num_rows = 0

    def run_pipeline(
        self, request: Request[Nothing], piece: object, side: PipelineSide[ModuleCall, Any]
    ) -> Finish[Nothing]:
        if self._subject.device.type == "cpu":
            torch.set_num_threads(1)
        name = request.request_id
        scoped = self._scope.copy_for(self._subject.pipeline, side, owner=CallOwner(request_id=name))
        self.pictures[name] = scoped(**self._subject.arguments([self._jobs[name]])).images
        return Finish(result=Nothing(), usage=Usage())

    def forward(self, calls: Sequence[ModuleCall]) -> Sequence[Any]:
        for call in calls:
            if call.owner is not None:
                self.first_step_s.setdefault(call.owner.request_id, time.perf_counter())
        return super().forward(calls)

    def close(self) -> None:
        self._lane.close()


Report = Mapping[str, float]


async def _replay(jobs: Sequence[Job], draw: Callable[[int, Job], Awaitable[None]]) -> tuple[list[float], float]:
    """Latencies in the order of the jobs, and the seconds of the whole run."""
    began_s = time.perf_counter()

    async def one(index: int, job: Job) -> float:
        await asyncio.sleep(job.arrival_s - (time.perf_counter() - began_s))
        await draw(index, job)
        return time.perf_counter() - began_s - job.arrival_s

    latencies = await asyncio.gather(*(one(index, job) for index, job in enumerate(jobs)))
    return list(latencies), time.perf_counter() - began_s


def _report(latencies: Sequence[float], elapsed_s: float, **more: float) -> Report:
    ordered = sorted(latencies)
    return {
        "images_per_s": len(latencies) / elapsed_s,
        "mean_s": statistics.fmean(latencies),
        "p50_s": statistics.median(latencies),
        "p95_s": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        **more,
    }


def serve_locked(subject: Subject, jobs: Sequence[Job]) -> Report:
    """One request after another, in order of arrival."""
    executor = ThreadPoolExecutor(max_workers=1)

    async def draw(_index: int, job: Job) -> None:
        await asyncio.get_running_loop().run_in_executor(executor, subject.draw, [job])

    report = _report(*asyncio.run(_replay(jobs, draw)))
    executor.shutdown()
    return report


def compute_locked(jobs: Sequence[Job], seconds_by_steps: Mapping[int, float]) -> Report:
    """What `serve_locked` would give, from the seconds that pictures of so many steps take: first come, first served."""
    free_s = 0.0
    latencies: list[float] = []
    for job in jobs:
        free_s = max(free_s, job.arrival_s) + seconds_by_steps[job.num_steps]
        latencies.append(free_s - job.arrival_s)
    return _report(latencies, free_s)


def serve_static(subject: Subject, jobs: Sequence[Job], *, max_batch: int, wait_s: float) -> Report:
    """Batches of equal jobs: the oldest waits at most ``wait_s`` for company, or until the device is free."""
    executor = ThreadPoolExecutor(max_workers=1)
    sizes: list[int] = []

    async def run() -> Report:
        waiting: list[tuple[float, Job, asyncio.Future[None]]] = []
        changed = asyncio.Condition()

        async def worker() -> None:
            while True:
                async with changed:
                    await changed.wait_for(lambda: bool(waiting))
                oldest_s, oldest, _ = waiting[0]
                left_s = oldest_s + wait_s - time.perf_counter()
                same = [row for row in waiting if row[1].static_key == oldest.static_key][:max_batch]
                if left_s > 0 and len(same) < max_batch:
                    await asyncio.sleep(left_s)
                    same = [row for row in waiting if row[1].static_key == oldest.static_key][:max_batch]
                for row in same:
                    waiting.remove(row)
                sizes.append(len(same))
                await asyncio.get_running_loop().run_in_executor(executor, subject.draw, [job for _, job, _ in same])
                for _, _, done in same:
                    done.set_result(None)

        async def draw(_index: int, job: Job) -> None:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            async with changed:
                waiting.append((time.perf_counter(), job, done))
                changed.notify()
            await done

        task = asyncio.create_task(worker())
        latencies, elapsed_s = await _replay(jobs, draw)
        task.cancel()
        return _report(latencies, elapsed_s, mean_batch=statistics.fmean(sizes))

    report = asyncio.run(run())
    executor.shutdown()
    return report


def serve_engine(
    subject: Subject,
    jobs: Sequence[Job],
    *,
    max_step_units: int,
    pool_threads: int = 4,
    graphs: RowGraphs | None = None,
    share: bool = True,
) -> Report:
    """Sixfold: requests join and leave the running batch at every step, after the warm-up of a server's start.

    Args:
        subject: What draws.
        jobs: To draw.
        max_step_units: Latent positions of a step.
        pool_threads: Threads that prepare.
        graphs: Recorded forwards.
        share: Without, requests share steps up to ``max_step_units``, whatever it costs.
    """
    named = {f"r{index}": job for index, job in enumerate(jobs)}

    async def run() -> Report:
        model = EngineModel(subject, named, max_step_units, graphs)
        model.whole_jobs = share
        threads = torch.get_num_threads()
        model.warm_up()
        torch.set_num_threads(threads)
        replica = LocalReplica(model, limits=Limits(max_running_sequences=64), num_pool_threads=pool_threads)
        started: dict[str, float] = {}

        async def draw(index: int, _job: Job) -> None:
            name = f"r{index}"
            started[name] = time.perf_counter()
            async with replica.submit(Request(request_id=name, input=Nothing(), arrived_s=time.monotonic())) as stream:
                while events := await stream.next_events():
                    if isinstance(events[-1], Failed):
                        raise events[-1].error

        latencies, elapsed_s = await _replay(jobs, draw)
        first = [model.first_step_s[name] - started[name] for name in started]
        calls, forwards = model.num_calls, model.num_forwards
        await replica.close()
        return _report(
            latencies, elapsed_s, mean_batch=calls / max(1, forwards), first_step_p50_s=statistics.median(first)
        )

    return asyncio.run(run())


def max_difference(
    subject: Subject, jobs: Sequence[Job], *, max_step_units: int, graphs: RowGraphs | None = None
) -> float:
    """The largest difference of a pixel (0 to 1) between pictures drawn together and each alone by the stock pipeline."""
    import numpy as np

    named = {f"r{index}": job for index, job in enumerate(jobs)}

    async def together() -> EngineModel:
        model = EngineModel(subject, named, max_step_units, graphs)
        model.whole_jobs = False  # all together, whatever it costs
        if graphs is not None:
            model.warm_up()
        replica = LocalReplica(model)
        streams = [
            replica.submit(Request(request_id=name, input=Nothing(), arrived_s=time.monotonic())) for name in named
        ]
        for stream in streams:
            async with stream:
                while await stream.next_events():
                    pass
        await replica.close()
        return model

    model = asyncio.run(together())
    return max(float(np.abs(model.pictures[name] - subject.draw([job])).max()) for name, job in named.items())


def table(rows: Mapping[str, Report]) -> str:
    """Markdown; the first row is the base of the ratios."""
    base = next(iter(rows.values()))
    lines = [
        "| server | images/s | x | mean s | p50 s | x | p95 s | x | mean batch |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        ratios = (
            row["images_per_s"] / base["images_per_s"],
            base["p50_s"] / row["p50_s"],
            base["p95_s"] / row["p95_s"],
        )
        batch = f"{row['mean_batch']:.2f}" if "mean_batch" in row else "1"
        lines.append(
            f"| {name} | {row['images_per_s']:.3f} | {ratios[0]:.2f} | {row['mean_s']:.2f} | {row['p50_s']:.2f} | "
            f"{ratios[1]:.2f} | {row['p95_s']:.2f} | {ratios[2]:.2f} | {batch} |"
        )
    return "\n".join(lines)
