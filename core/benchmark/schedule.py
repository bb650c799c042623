"""When requests are sent: at moments drawn beforehand, whatever the server does (open loop), or when others end (closed)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from sixfold.core.benchmark.outcome import Outcome
from sixfold.core.benchmark.workload import Sample

Ask = Callable[[Sample, float], Awaitable[Outcome]]
"""Sends a sample that was due at a moment and returns what came of it; never raises for a failing server."""


def poisson_arrivals_s(rate_per_s: float, count: int, rng: random.Random) -> tuple[float, ...]:
    """Moments after the start, whose distances are exponentially distributed with the mean ``1 / rate_per_s``."""
    at_s, found = 0.0, list[float]()
    for _arrival in range(count):
        found.append(at_s)
        at_s += rng.expovariate(rate_per_s)
    return tuple(found)


async def run_open_loop(
    ask: Ask, samples: Sequence[Sample], arrivals_s: Sequence[float], *, clock: Callable[[], float]
) -> list[Outcome]:
    """Sends each sample at its moment, however many are under way, and waits for all.

    A request that could not be sent in time still counts from its moment (no coordinated omission).
    """
    started_s = clock()
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[Outcome]] = []
        for sample, arrival_s in zip(samples, arrivals_s, strict=True):
            due_s = started_s + arrival_s
            wait_s = due_s - clock()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            tasks.append(group.create_task(_as_task(ask, sample, due_s)))
    return [task.result() for task in tasks]


async def run_closed_loop(
    ask: Ask, samples: Sequence[Sample], *, concurrency: int, clock: Callable[[], float]
) -> list[Outcome]:
    """Keeps ``concurrency`` requests under way until all samples were sent, and waits for all."""
    left = iter(samples)
    outcomes: list[Outcome] = []

    async def keep_sending() -> None:
        for sample in left:
            outcomes.append(await ask(sample, clock()))

    async with asyncio.TaskGroup() as group:
        for _sender in range(min(concurrency, len(samples))):
            group.create_task(keep_sending())
    return outcomes


async def _as_task(ask: Ask, sample: Sample, due_s: float) -> Outcome:
    return await ask(sample, due_s)
