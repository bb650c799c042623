"""One call of ``sixfold bench``: warm-up, then rounds in which each server gets the same requests, in turns."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from sixfold.core.benchmark.outcome import Outcome
from sixfold.core.benchmark.schedule import poisson_arrivals_s, run_closed_loop, run_open_loop
from sixfold.core.benchmark.target import Target
from sixfold.core.benchmark.workload import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How requests are sent: exactly one is set.

    Attributes:
        rate_per_s: Poisson arrivals.
        concurrency: Requests under way.
    """

    rate_per_s: float | None = None
    concurrency: int | None = None


@dataclass(slots=True)
class Measured:
    """What one server did.

    Attributes:
        rounds: The outcomes of each round.
    """

    rounds: list[list[Outcome]] = field(default_factory=list[list[Outcome]])

    @property
    def outcomes(self) -> list[Outcome]:
        """Of all rounds."""
        return [outcome for each in self.rounds for outcome in each]


async def measure(
    targets: Sequence[Target],
    samples: Sequence[Sequence[Sample]],
    warm_up: Sequence[Sample],
    load: Load,
    *,
    num_rounds: int,
    seed: int,
) -> list[Measured]:
    """Loads each server in turns, ABBA: whatever drifts on the machine meets both alike.

    Args:
        targets: One or two.
        samples: Of each target, as many of each; split over the rounds, in which all targets get theirs at the same moments.
        warm_up: Sent to each before anything is measured; of texts that do not come again, so that no prefix cache knows
            what comes.
        load: How they are sent.
        num_rounds: Of all.
        seed: Of the arrivals.
    """
    for target in targets:
        await target.prepare()
        await run_closed_loop(target.ask, warm_up, concurrency=4, clock=time.perf_counter)
    measured = [Measured() for _target in targets]
    for number in range(num_rounds):
        order = list(enumerate(targets))
        for index, target in order if number % 2 == 0 else reversed(order):
            measured[index].rounds.append(
                await _run(target, samples[index][number::num_rounds], load, random.Random(seed + number))
            )
    return measured


async def _run(target: Target, samples: Sequence[Sample], load: Load, rng: random.Random) -> list[Outcome]:
    if load.rate_per_s is None:
        assert load.concurrency is not None
        return await run_closed_loop(target.ask, samples, concurrency=load.concurrency, clock=time.perf_counter)
    arrivals_s = poisson_arrivals_s(load.rate_per_s, len(samples), rng)
    return await run_open_loop(target.ask, samples, arrivals_s, clock=time.perf_counter)
