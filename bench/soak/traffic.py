"""Clients of six modalities that answer their own questions: most wait, some leave, dawdle or stop in mid-sentence."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Mapping

import abuse
from corpus import Corpus
from exchange import POLITE, Manner, Reply, exchange
from ledger import READS_SLOWLY, End, Ledger
from scenarios import Filming, Talking

NUM_CLIENTS: Mapping[str, int] = {"chat": 4, "embed": 3, "speak": 2, "hear": 1, "draw": 2}
"""Of each model's plain clients. One makes clips, one speaks into a socket and two are abusive beside them."""


MAX_PAUSE_S = 5.0
"""Clients that are refused come back when they are told to, or after this long: enough of them must be there to be refused."""


class Traffic:
    """The clients of one phase.

    Args:
        port: Of the server.
        corpus: Learned.
        ledger: Gets a row for each request.
        seed: Of what clients do, and in which order.
    """

    def __init__(self, port: int, corpus: Corpus, ledger: Ledger, seed: int) -> None:
        self._port = port
        self._corpus = corpus
        self._ledger = ledger
        self._seed = seed
        self._ends_s = 0.0
        self._typical_s: dict[str, list[float]] = {}
        self._filming = Filming(port)
        self._talking = Talking(port)

    async def run(self, seconds: float) -> None:
        """Drives all clients for so long, and waits until each has its last answer."""
        self._ends_s = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for modality, count in NUM_CLIENTS.items():
                for index in range(count):
                    group.create_task(self._keep_asking(modality, self._draw(f"{modality}{index}")))
            group.create_task(self._keep_playing(self._filming, self._draw("film")))
            group.create_task(self._keep_playing(self._talking, self._draw("socket")))
            for index in range(2):
                group.create_task(self._keep_abusing(self._draw(f"abuse{index}")))

    async def learn(self) -> None:
        """Makes the one clip and hears the one recording that are known from then on.

        Raises:
            RuntimeError: The server does not do it.
        """
        for scenario in (self._filming, self._talking):
            verdict = await scenario.play()
            if verdict.end is not End.ANSWERED:
                raise RuntimeError(f"{scenario.modality}, {scenario.act}: {verdict}")

    async def touch_all(self, times: int) -> None:
        """Every known request so often, all at once: what a process makes on first use is made."""
        for _round in range(times):
            async with asyncio.TaskGroup() as group:
                for known in self._corpus.known:
                    group.create_task(exchange(self._port, known.ask, "touch"))
                group.create_task(self._filming.play())
                group.create_task(self._talking.play())

    def _draw(self, name: str) -> random.Random:
        return random.Random(f"{self._seed}/{name}")

    @property
    def _going(self) -> bool:
        return time.monotonic() < self._ends_s

    async def _keep_asking(self, modality: str, draw: random.Random) -> None:
        while self._going:
            known = draw.choice(self._corpus.of(modality))
            act, manner = self._manner(draw, modality)
            request_id = self._ledger.begin(modality, f"{known.act}, {act}", time.monotonic())
            reply = await exchange(self._port, known.ask, request_id, manner)
            verdict = self._corpus.judge(known, reply, request_id)
            row = self._ledger.end(request_id, verdict, time.monotonic())
            if row.end is End.ANSWERED and act == "waits":
                self._typical_s.setdefault(modality, []).append(row.ended_s - row.began_s)
            await self._rest(draw, row.end, reply)

    def _manner(self, draw: random.Random, modality: str) -> tuple[str, Manner]:
        chosen = draw.random()
        if chosen < 0.62:
            return "waits", POLITE
        if chosen < 0.80:
            lately = self._typical_s.get(modality, [1.0])[-20:]
            return "leaves", Manner(leave_after_s=draw.uniform(0.0, 1.1 * statistics.median(lately)))
        if chosen < 0.88:
            return "leaves in mid-answer", Manner(leave_after_bytes=draw.randint(1, 1500))
        if chosen < 0.96:
            return READS_SLOWLY, Manner(pause_s=draw.uniform(0.01, 0.05))
        return "sends a part", Manner(sent_share=draw.uniform(0.0, 0.99), stall_s=draw.uniform(0.0, 1.0))

    async def _rest(self, draw: random.Random, end: End, reply: Reply | None = None) -> None:
        if end in (End.REFUSED, End.FAILED):
            after_s = float(reply.headers.get("retry-after", 1)) if reply is not None else 1.0
            await asyncio.sleep(min(after_s, MAX_PAUSE_S))
        else:
            await asyncio.sleep(draw.uniform(0.0, 0.2))

    async def _keep_playing(self, scenario: Filming | Talking, draw: random.Random) -> None:
        while self._going:
            leaves = draw.random() < 0.3
            act = f"{scenario.act}, {'leaves' if leaves else 'waits'}"
            request_id = self._ledger.begin(scenario.modality, act, time.monotonic())
            verdict = await scenario.play(draw.random() if leaves else None)
            row = self._ledger.end(request_id, verdict, time.monotonic())
            await self._rest(draw, row.end)

    async def _keep_abusing(self, draw: random.Random) -> None:
        pieces: list[abuse.Abuse] = []
        while self._going:
            if not pieces:
                pieces = abuse.all_abuse()
                draw.shuffle(pieces)
            piece = pieces.pop()
            request_id = self._ledger.begin("abuse", piece.act, time.monotonic())
            reply = await exchange(self._port, piece.ask, request_id, piece.manner)
            self._ledger.end(request_id, abuse.judge(piece, reply, request_id), time.monotonic())
            await asyncio.sleep(draw.uniform(0.05, 0.3))
