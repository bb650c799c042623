"""Ends worker processes without warning, as the system does when memory runs out, and sees how soon the server knows."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
from census import Observer
from ledger import READS_SLOWLY, End, Row
from servers import RunningServer

FIRST_KILL_S = 20.0
KILL_EVERY_S = 60.0
LAST_KILL_S = 30.0
"""Before the end of a phase no kill comes later than so long before it: its worker shall be back for what is counted then."""

_LOOK_EVERY_S = 0.005
_SEEN_TIMEOUT_S = 10.0
_BACK_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One worker's end.

    Attributes:
        model: Whose worker it was.
        at_s: Monotonic seconds, just before SIGKILL.
        seen_s: From there until the server's own log had it.
        back_s: From there until the log said that another had taken its place; None if it never did.
    """

    model: str
    at_s: float
    seen_s: float
    back_s: float | None

    def covers(self, row: Row) -> bool:
        """Whether a request at this model may have met its end: it began before another worker was there."""
        back_s = self.at_s + (self.back_s if self.back_s is not None else _BACK_TIMEOUT_S)
        return row.modality == self.model and row.began_s < back_s and row.ended_s >= self.at_s


async def keep_killing(server: RunningServer, observer: Observer, seconds: float) -> list[Kill]:
    """Kills the worker that has lived longest, every minute of a phase; so each model's turn comes."""
    ends_s = time.monotonic() + seconds - LAST_KILL_S
    kills: list[Kill] = []
    await asyncio.sleep(FIRST_KILL_S)
    while time.monotonic() < ends_s:
        began_s = time.monotonic()
        kills.append(await kill_oldest(server, observer))
        print(f"killed the worker of {kills[-1].model}: {kills[-1]}", flush=True)
        await asyncio.sleep(max(0.0, began_s + KILL_EVERY_S - time.monotonic()))
    return kills


async def kill_oldest(server: RunningServer, observer: Observer) -> Kill:
    """Kills one worker, and waits until the server has replaced it."""
    workers = observer.workers()
    pid = min(workers, key=lambda each: psutil.Process(each).create_time())
    model = workers[pid]
    log_length = len(server.log)
    at_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    died = rf"the worker of {re.escape(model)} (is ending|ended with status -9)"
    seen_s = await _logged(server, log_length, died, _SEEN_TIMEOUT_S)
    back_s = await _logged(server, log_length, rf"model {re.escape(model)}: replica \d+ was replaced", _BACK_TIMEOUT_S)
    return Kill(
        model=model,
        at_s=at_s,
        seen_s=(seen_s or float("inf")) - at_s,
        back_s=None if back_s is None else back_s - at_s,
    )


async def _logged(server: RunningServer, log_length: int, pattern: str, timeout_s: float) -> float | None:
    """When the log says so."""
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        if re.search(pattern, server.log[log_length:]):
            return time.monotonic()
        await asyncio.sleep(_LOOK_EVERY_S)
    return None


def told_s(kill: Kill, rows: Sequence[Row]) -> list[float]:
    """How long after the kill those requests were told that were at the model when it came.

    A client that reads slowly is left out: it has what was sent before to read first, which takes as long as it likes.
    """
    return [
        row.ended_s - kill.at_s
        for row in rows
        if row.modality == kill.model
        and row.end is End.FAILED
        and row.began_s <= kill.at_s <= row.ended_s
        and not row.act.endswith(READS_SLOWLY)
    ]
