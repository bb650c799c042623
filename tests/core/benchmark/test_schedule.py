"""Requests leave when they are due, whatever the server does, and count from then."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics

import pytest

from sixfold.core.benchmark.outcome import Outcome
from sixfold.core.benchmark.schedule import poisson_arrivals_s, run_closed_loop, run_open_loop
from sixfold.core.benchmark.summary import summarize
from sixfold.core.benchmark.workload import Sample
from tests.core.benchmark.jumping_loop import run_jumping


class SlowServer:
    """Does one request after another, ``service_s`` each; counts how many wait at most."""

    def __init__(self, service_s: float) -> None:
        self.service_s = service_s
        self.free = asyncio.Lock()
        self.num_present = 0
        self.max_present = 0

    async def ask(self, _sample: Sample, due_s: float) -> Outcome:
        clock = asyncio.get_running_loop().time
        sent_s = clock()
        self.num_present += 1
        self.max_present = max(self.max_present, self.num_present)
        async with self.free:
            await asyncio.sleep(self.service_s)
        self.num_present -= 1
        return Outcome(due_s=due_s, sent_s=sent_s, output_s=(clock(),), ended_s=clock())


def test_a_stalled_server_shows_in_every_request_that_was_due_meanwhile() -> None:
    async def run() -> list[Outcome]:
        clock = asyncio.get_running_loop().time
        samples = [Sample()] * 10
        return await run_open_loop(SlowServer(3.0).ask, samples, [float(n) for n in range(10)], clock=clock)

    outcomes = run_jumping(run())
    assert [outcome.due_s for outcome in outcomes] == [float(n) for n in range(10)]
    # The n-th is done after 3 (n + 1) s and was due after n s.
    assert [outcome.e2e_s for outcome in outcomes] == [pytest.approx(3.0 * (n + 1) - n) for n in range(10)]
    assert [outcome.sent_s for outcome in outcomes] == [pytest.approx(n) for n in range(10)]


def test_a_late_generator_counts_against_the_latency() -> None:
    outcome = Outcome(due_s=10.0, sent_s=12.0, output_s=(13.0, 14.0), ended_s=15.0)
    summary = summarize([outcome], None)
    assert (outcome.ttft_s, outcome.e2e_s, outcome.gaps_s) == (3.0, 5.0, (1.0,))
    assert summary.late_s is not None and summary.late_s.max == 2.0


def test_a_closed_loop_keeps_its_requests_under_way_and_sends_each_sample_once() -> None:
    async def run() -> tuple[list[Outcome], SlowServer]:
        server = SlowServer(1.0)
        clock = asyncio.get_running_loop().time
        return await run_closed_loop(server.ask, [Sample()] * 12, concurrency=4, clock=clock), server

    outcomes, server = run_jumping(run())
    assert (len(outcomes), server.max_present) == (12, 4)
    assert max(outcome.ended_s for outcome in outcomes) == pytest.approx(12.0)
    # After the first four, each waits for the three before it.
    assert [outcome.e2e_s for outcome in outcomes[4:]] == [pytest.approx(4.0)] * 8


def test_arrivals_are_poisson_and_the_same_for_one_seed() -> None:
    arrivals_s = poisson_arrivals_s(20.0, 20_000, random.Random(7))
    gaps_s = [later - earlier for earlier, later in itertools.pairwise(arrivals_s)]
    assert statistics.mean(gaps_s) == pytest.approx(1 / 20, rel=0.03)
    assert statistics.stdev(gaps_s) == pytest.approx(1 / 20, rel=0.05)
    assert arrivals_s == poisson_arrivals_s(20.0, 20_000, random.Random(7))
    assert arrivals_s[0] == 0.0
