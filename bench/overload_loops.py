"""The loads of `overload.py`: closed loops, open loops and probes against one model, and what came of them."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from sixfold.core.benchmark.client import Answer, Connection

LOADS = (1.0, 2.0, 5.0)
LEAD_S = 5.0
NUM_PROBES = 16
FILL_S = 1.0
PROBE_EVERY_S = 0.02
MAX_IN_FLIGHT = 64
MAX_COMEBACKS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What one model is asked.

    Attributes:
        deadline_s: An answer that takes longer is of no use.
        body: Makes a request of so many times the usual size.
        probe_size: Of probes: large enough that the time until there is room is many steps.
    """

    model: str
    path: str
    deadline_s: float
    body: Callable[[random.Random, int], dict[str, object]]
    probe_size: int


@dataclass(slots=True)
class Loop:
    """What came of one load."""

    seconds: float = 0.0
    num_due: int = 0
    num_good: int = 0
    num_late: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    told_s: list[float] = field(default_factory=list)
    rounded_s: list[float] = field(default_factory=list)

    @property
    def good_per_s(self) -> float:
        return self.num_good / self.seconds

    def count(self, answer: Answer, latency_s: float, deadline_s: float) -> None:
        self.outcomes[kind_of(answer)] += 1
        if answer.status == 200:
            self.num_good += latency_s <= deadline_s
            self.num_late += latency_s > deadline_s
        elif answer.status == 429 and "retry-after-ms" in answer.headers:
            self.told_s.append(told_s(answer))
            self.rounded_s.append(float(answer.headers["retry-after"]) - told_s(answer))


class Overload:
    """All that is done to one model.

    Args:
        port: Of the server.
        workload: What is asked.
        seconds: Of an open loop.
        seed: Of texts and arrivals.
    """

    def __init__(self, port: int, workload: Workload, seconds: float, seed: int) -> None:
        self._port = port
        self.workload = workload
        self._seconds = seconds
        self._draw = random.Random(f"{seed}/{workload.model}")
        self._idle: list[Connection] = []
        self.closed: dict[int, Loop] = {}
        self.open: dict[float, Loop] = {}
        self.probes: list[tuple[float, float]] = []  # what the refusal said, and when it was admitted; seconds
        self.tries: Counter[int] = Counter()  # of clients that come back as told, until they were admitted

    async def run(self) -> None:
        """Capacity, loads, probes."""
        in_flight = 2
        while in_flight <= MAX_IN_FLIGHT:
            self.closed[in_flight] = loop = await self._closed_loop(in_flight)
            self._say(f"{in_flight} in flight: {loop.good_per_s:.2f} good/s, {dict(loop.outcomes)}")
            if in_flight > 4 and loop.good_per_s < 1.03 * self.closed[in_flight // 2].good_per_s:
                break
            in_flight *= 2
        if not self.peak_per_s:
            raise RuntimeError(
                f"{self.workload.model}: nothing was answered within {self.workload.deadline_s:g} s; is the machine busy?"
            )
        for load in LOADS:
            self.open[load] = loop = await self._open_loop(load * self.peak_per_s, obedient=load == LOADS[-1])
            self._say(f"{load:g} times: {loop.good_per_s:.2f} good/s, {loop.num_late} late, {dict(loop.outcomes)}")
        for _probe in range(NUM_PROBES):
            await self._fill_and_probe(LOADS[-1] * self.peak_per_s)
        for connection in self._idle:
            connection.close()

    @property
    def peak_per_s(self) -> float:
        """The highest goodput of the closed loops."""
        return max(loop.good_per_s for loop in self.closed.values())

    def _say(self, text: str) -> None:
        print(f"[{self.workload.model}] {text}", flush=True)

    async def _ask(self, size: int = 1) -> Answer:
        body = json.dumps(self.workload.body(self._draw, size)).encode()
        began_s = time.perf_counter()
        try:
            connection = self._idle.pop() if self._idle else await Connection.open(self._port)
            answer = await connection.request("POST", self.workload.path, body)
        except OSError:
            return Answer(started_s=began_s, ended_s=time.perf_counter())
        if connection.usable:
            self._idle.append(connection)
        return answer

    async def _closed_loop(self, in_flight: int) -> Loop:
        loop = Loop(seconds=self._seconds / 2)
        began_s = time.perf_counter() + 2.0  # a lead, so that the batch has its size
        ends_s = began_s + loop.seconds

        async def keep_asking() -> None:
            while time.perf_counter() < ends_s:
                sent_s = time.perf_counter()
                answer = await self._ask()
                if began_s <= answer.ended_s < ends_s:
                    loop.count(answer, answer.ended_s - sent_s, self.workload.deadline_s)
                if answer.status == 429:
                    await asyncio.sleep(told_s(answer))

        async with asyncio.TaskGroup() as group:
            for _client in range(in_flight):
                group.create_task(keep_asking())
        return loop

    async def _open_loop(self, per_s: float, *, obedient: bool) -> Loop:
        """Arrivals of which those within the counted time count, whenever their answers come."""
        loop = Loop(seconds=self._seconds)
        began_s = time.perf_counter()

        async def ask_once(due_s: float) -> None:
            answer = await self._ask()
            if due_s >= began_s + LEAD_S:
                loop.num_due += 1
                loop.count(answer, answer.ended_s - due_s, self.workload.deadline_s)

        async def come_back() -> None:
            await asyncio.sleep(LEAD_S)
            while time.perf_counter() < began_s + LEAD_S + self._seconds:
                await self._obey()

        async with asyncio.TaskGroup() as group:
            if obedient:
                group.create_task(come_back())
            due_s = began_s
            while True:
                due_s += self._draw.expovariate(per_s)
                if due_s >= began_s + LEAD_S + self._seconds:
                    break
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                group.create_task(ask_once(due_s))
        return loop

    async def _obey(self) -> None:
        """One client that comes back when it is told to, up to so many times."""
        for number in range(MAX_COMEBACKS):
            answer = await self._ask()
            if answer.status != 429:
                self.tries[number] += 1
                return
            await asyncio.sleep(float(answer.headers["retry-after"]))
        self.tries[MAX_COMEBACKS] += 1

    async def _fill_and_probe(self, per_s: float) -> None:
        async with asyncio.TaskGroup() as group:
            ends_s = time.perf_counter() + FILL_S
            due_s = time.perf_counter()
            while due_s < ends_s:
                group.create_task(self._ask())
                due_s += self._draw.expovariate(per_s)
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            group.create_task(self._probe())

    async def _probe(self) -> None:
        answer = await self._ask(self.workload.probe_size)
        if answer.status != 429:
            return
        said_s, refused_s = told_s(answer), answer.ended_s
        while answer.status == 429:
            await asyncio.sleep(PROBE_EVERY_S)
            answer = await self._ask(self.workload.probe_size)
        self.probes.append((said_s, answer.started_s - refused_s))


def kind_of(answer: Answer) -> str:
    """``200``, ``429`` if it is as it must be, else what is odd."""
    if answer.status != 429:
        return str(answer.status or "no answer")
    try:
        is_ours = json.loads(answer.body)["error"].keys() >= {"message", "type", "param", "code"}
    except (ValueError, KeyError, AttributeError, TypeError):
        is_ours = False
    return "429" if is_ours and {"retry-after", "retry-after-ms"} <= answer.headers.keys() else "429 of another shape"


def told_s(answer: Answer) -> float:
    """What a refusal says, exactly."""
    return float(answer.headers["retry-after-ms"]) / 1000
