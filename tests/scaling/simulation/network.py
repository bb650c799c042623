"""A network that delays, reorders, loses, repeats and parts, by the seed."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

ResultT = TypeVar("ResultT")

TIMEOUT_S = 1.5
CALM_S = 0.05


class Unreachable(Exception):
    """No answer within the time; whether the call arrived, or will arrive, is unknown."""


@dataclass
class Network:
    """Calls between named nodes. Who calls may give up or crash: what is under way still arrives.

    Attributes:
        cut: Pairs of nodes between which nothing passes; both directions are listed.
        down: Nodes that answer nothing.
        slow_s: Longest delay of a message; more than `TIMEOUT_S` brings late writes.
        loss: Share of messages that are lost.
        repeat: Share of messages that arrive twice.
    """

    rng: random.Random
    cut: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    down: set[str] = field(default_factory=set[str])
    slow_s: float = CALM_S
    loss: float = 0.0
    repeat: float = 0.02

    def part(self, ones: set[str], others: set[str]) -> None:
        self.cut |= {pair for a in ones for b in others for pair in ((a, b), (b, a))}

    def heal(self) -> None:
        self.cut.clear()
        self.slow_s, self.loss = CALM_S, 0.0

    async def call(self, source: str, target: str, handler: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Lets ``handler`` run at the target and brings its result, or its error, back."""
        under_way = asyncio.ensure_future(self._exchange(source, target, handler))
        under_way.add_done_callback(lambda task: task.cancelled() or task.exception())
        done, _ = await asyncio.wait({under_way}, timeout=TIMEOUT_S)
        if not done:
            raise Unreachable(f"{source} -> {target}")
        return under_way.result()

    async def _exchange(self, source: str, target: str, handler: Callable[[], Awaitable[ResultT]]) -> ResultT:
        await self._pass(source, target)
        if self.rng.random() < self.repeat:
            try:
                await handler()
            except Exception as error:  # the copy's answer reaches nobody
                assert error
        result = await handler()
        await self._pass(target, source)
        return result

    async def _pass(self, source: str, target: str) -> None:
        await asyncio.sleep(self.rng.uniform(0.001, self.slow_s))
        if (source, target) in self.cut or source in self.down or target in self.down or self.rng.random() < self.loss:
            await asyncio.sleep(TIMEOUT_S)
            raise Unreachable(f"{source} -> {target}")
