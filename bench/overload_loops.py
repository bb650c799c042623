"""The loads of `overload.py`: closed loops, open loops and probes against one model, and what came of them."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from sixfold.core.benchmark.client import Address, Answer, Connection

CALM = 0.7
FULL = 2.0
FLOOD = 5.0
NUM_ROUNDS = 3
NUM_SIZED = 5
LONE_SHARE = 0.1
RUSH = 24
RUSH_AFTER = 15
LEAST_LEAD_S = 5.0
LEAD_SHARE = 1.25
NUM_PROBES = 16
FILL_S = 1.0
PROBE_EVERY_S = 0.02
MAX_IN_FLIGHT = 64
NUM_BODIES = 16_000
MAX_COMEBACKS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What one model is asked.

    Attributes:
        deadline_s: An answer that takes longer is of no use.
        body: Makes a request of so many times the usual size, at most 1.
        probe_within_s: What a probe says that it has: less than the others, so that it must wait for many steps.
    """

    model: str
    path: str
    deadline_s: float
    body: Callable[[random.Random, float], dict[str, object]]
    probe_within_s: float


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
        elif answer.status == 504:
            self.num_late += 1
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
        # The peak is measured without deadlines, so that refusals that are not needed cannot lower it.
        self._addresses = {
            within_s: Address(port=port, headers={} if within_s is None else {"x-request-timeout-s": f"{within_s:g}"})
            for within_s in (None, workload.deadline_s, workload.probe_within_s)
        }
        self.workload = workload
        self._seconds = seconds
        self._draw = random.Random(f"{seed}/{workload.model}")
        self.share = 1.0  # of the usual size that requests have
        self._bodies: list[bytes] = []
        self._idle: dict[float | None, list[Connection]] = {within_s: [] for within_s in self._addresses}
        # Those who come before it is known how long requests take with so much in the queue are let in, and it is too long until
        # they have ended.
        self._lead_s = max(LEAST_LEAD_S, LEAD_SHARE * workload.deadline_s)
        self.closed: dict[int, Loop] = {}
        self.rounds: list[dict[str, Loop]] = []  # the best closed loop, more than can be done, and much more: in turn
        self.num_rush_refused = 0
        self.calm = Loop()
        self.probes: list[tuple[float, float]] = []  # what the refusal said, and when it was admitted; seconds
        self.tries: Counter[int] = Counter()  # of clients that come back as told, until they were admitted

    async def run(self) -> None:
        """Capacity, loads, probes."""
        lone = [await self._ask(self.workload.deadline_s) for _ in range(NUM_SIZED)]
        lone_s = statistics.median(answer.ended_s - answer.started_s for answer in lone)
        if lone_s > LONE_SHARE * self.workload.deadline_s:
            self.share = 0.6 * LONE_SHARE * self.workload.deadline_s / lone_s
        # Made before: the clients share the machine with the server. No two alike: a cache would know the second.
        self._bodies = [self._body() for _ in range(NUM_BODIES)]
        for _request in range(RUSH_AFTER):  # one at a time: nobody knows yet how fast a batch is
            await self._ask(self.workload.deadline_s)
        rush = Loop(seconds=1.0)
        for answer in await asyncio.gather(*(self._ask(self.workload.deadline_s) for _ in range(RUSH))):
            rush.count(answer, answer.ended_s - answer.started_s, self.workload.deadline_s)
        self.num_rush_refused = rush.outcomes["429"]
        self._say(f"{RUSH} at once after {RUSH_AFTER} one by one: {told(rush)}")
        in_flight = 2
        while in_flight <= MAX_IN_FLIGHT:
            self.closed[in_flight] = loop = await self._closed_loop(in_flight, self._seconds / 2)
            self._say(f"{in_flight} in flight: {told(loop)}")
            if in_flight > 4 and loop.good_per_s < 1.03 * self.closed[in_flight // 2].good_per_s:
                break
            in_flight *= 2
        if not any(loop.num_good for loop in self.closed.values()):
            raise RuntimeError(
                f"{self.workload.model}: nothing was answered within {self.workload.deadline_s:g} s; is the machine busy?"
            )
        best = max(self.closed, key=lambda in_flight: self.closed[in_flight].good_per_s)
        peak_per_s = self.closed[best].good_per_s
        self.calm = await self._open_loop(CALM * peak_per_s, obedient=False)
        self._say(f"{CALM:g} times: {told(self.calm)}")
        for _round in range(NUM_ROUNDS):
            loops = {
                f"{best} in flight": await self._closed_loop(best, self._seconds),
                f"{FULL:g} times": await self._open_loop(FULL * peak_per_s, obedient=False),
                f"{FLOOD:g} times": await self._open_loop(FLOOD * peak_per_s, obedient=True),
            }
            self.rounds.append(loops)
            self._say("; ".join(f"{name}: {told(loop)}" for name, loop in loops.items()))
        for _probe in range(NUM_PROBES):
            await self._fill_and_probe(FLOOD * peak_per_s)
        for idle in self._idle.values():
            for connection in idle:
                connection.close()

    @property
    def medians(self) -> dict[str, float]:
        """Of each load of the rounds, the goodput."""
        return {name: statistics.median(loops[name].good_per_s for loops in self.rounds) for name in self.rounds[0]}

    @property
    def peak_per_s(self) -> float:
        """The greatest of the medians."""
        return max(self.medians.values())

    @property
    def flood_per_s(self) -> float:
        """The median under the greatest load."""
        return self.medians[f"{FLOOD:g} times"]

    @property
    def floods(self) -> list[Loop]:
        """The loops of the greatest load."""
        return [loops[f"{FLOOD:g} times"] for loops in self.rounds]

    @property
    def told_share(self) -> list[str]:
        """A line of a report where requests are smaller than usual."""
        told = f"Alone one took over {LONE_SHARE:.0%} of its time on this machine: all have {self.share:.2f} of their size."
        return [] if self.share == 1.0 else [told, ""]

    def _body(self) -> bytes:
        return json.dumps(self.workload.body(self._draw, self.share)).encode()

    def _say(self, text: str) -> None:
        print(f"[{self.workload.model}] {text}", flush=True)

    async def _ask(self, within_s: float | None) -> Answer:
        body = self._bodies.pop() if self._bodies else self._body()
        began_s = time.perf_counter()
        try:
            idle = self._idle[within_s]
            connection = idle.pop() if idle else await Connection.open(self._addresses[within_s])
            answer = await connection.request("POST", self.workload.path, body)
        except OSError:
            return Answer(started_s=began_s, ended_s=time.perf_counter())
        if connection.usable:
            idle.append(connection)
        return answer

    async def _closed_loop(self, in_flight: int, seconds: float) -> Loop:
        loop = Loop(seconds=seconds)
        # A lead, so that the batch has its size, and what began together ends apart.
        began_s = time.perf_counter() + min(self._lead_s, seconds / 2)
        ends_s = began_s + loop.seconds

        async def keep_asking() -> None:
            while time.perf_counter() < ends_s:
                sent_s = time.perf_counter()
                answer = await self._ask(None)
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
            answer = await self._ask(self.workload.deadline_s)
            if due_s >= began_s + self._lead_s:
                loop.num_due += 1
                loop.count(answer, answer.ended_s - due_s, self.workload.deadline_s)

        async def come_back() -> None:
            await asyncio.sleep(self._lead_s)
            while time.perf_counter() < began_s + self._lead_s + self._seconds:
                await self._obey()

        async with asyncio.TaskGroup() as group:
            if obedient:
                group.create_task(come_back())
            due_s = began_s
            while True:
                due_s += self._draw.expovariate(per_s)
                if due_s >= began_s + self._lead_s + self._seconds:
                    break
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                group.create_task(ask_once(due_s))
        return loop

    async def _obey(self) -> None:
        """One client that comes back when it is told to, up to so many times."""
        for number in range(MAX_COMEBACKS):
            answer = await self._ask(self.workload.deadline_s)
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
                group.create_task(self._ask(self.workload.deadline_s))
                due_s += self._draw.expovariate(per_s)
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            group.create_task(self._probe())

    async def _probe(self) -> None:
        answer = await self._ask(self.workload.probe_within_s)
        if answer.status != 429:
            return
        said_s, refused_s = told_s(answer), answer.ended_s
        while answer.status == 429:
            await asyncio.sleep(PROBE_EVERY_S)
            answer = await self._ask(self.workload.probe_within_s)
        self.probes.append((said_s, answer.started_s - refused_s))


def told(loop: Loop) -> str:
    """In a line."""
    return f"{loop.good_per_s:.2f} good/s, {loop.num_late} late, {dict(loop.outcomes)}"


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
