"""What the server holds at one moment: memory, descriptors and threads of each process, and what its own gauges say is in use."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil
from exchange import Ask, exchange
from prometheus_client.parser import text_string_to_metric_families
from servers import RunningServer

HELD = frozenset(
    {
        "sixfold:num_requests_running", "sixfold:num_requests_waiting", "sixfold:num_requests_waiting_for_load",
        "sixfold:num_sequences_running", "sixfold:num_sequences_waiting", "sixfold:queued_units",
        "sixfold:kv_blocks_used", "sixfold:kv_transfer_held_blocks", "sixfold:audio_encoded_windows",
        "sixfold:vae_waiting_requests", "sixfold:image_row_cache_bytes", "sixfold:video_row_cache_bytes",
    }
)  # fmt: skip
"""Gauges of what requests hold; with no request there they are all 0."""

SERVER = "server"
_PID = re.compile(r"the worker of (\S+) is process (\d+)")
_SETTLE_S = 30.0
_QUIET_S = 2.0
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process.

    Attributes:
        pss_mib: Its share of the memory, pages that others map counted in part.
        rss_mib: All pages that it maps.
    """

    pss_mib: float
    rss_mib: float
    num_fds: int
    num_threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """Everything at one moment.

    Attributes:
        processes: By what they are: the server, the worker of each model, and whatever else they started.
        held: Sums of the gauges in `HELD` by name and model.
        totals: Answers with status 500, and failures that name no cause, since the start.
    """

    processes: Mapping[str, Process]
    held: Mapping[str, float]
    totals: Mapping[str, float]

    @property
    def pss_mib(self) -> float:
        """Of all processes."""
        return sum(each.pss_mib for each in self.processes.values())


class Observer:
    """Looks at a server from outside.

    Args:
        server: Started by this process.
    """

    def __init__(self, server: RunningServer) -> None:
        self._server = server

    def workers(self) -> dict[int, str]:
        """Models by the pid of their worker, for workers that live and that this server itself started."""
        named = {int(pid): name for name, pid in _PID.findall(self._server.log)}
        children = psutil.Process(self._server.pid).children(recursive=True)
        return {child.pid: named[child.pid] for child in children if child.pid in named}

    async def settle(self, baseline: Census | None = None) -> Census:
        """Waits until nothing is held and nothing changes, and counts; at the latest after half a minute, as it is then.

        Args:
            baseline: Counting also waits, as long, until there are no more descriptors and threads than here.
        """
        until_s = time.monotonic() + _SETTLE_S
        before = await self.count()
        while True:
            await asyncio.sleep(_QUIET_S)
            now = await self.count()
            is_quiet = not any(now.held.values()) and handles(now) == handles(before)
            if (is_quiet and (baseline is None or not grown(baseline, now))) or time.monotonic() > until_s:
                return now
            before = now

    async def count(self) -> Census:
        """Counts now."""
        reply = await exchange(self._server.port, Ask(method="GET", path="/metrics"), "census")
        held: dict[str, float] = {}
        totals: dict[str, float] = {}
        for family in text_string_to_metric_families(bytes(reply.body).decode()):
            for sample in family.samples:
                if sample.name in HELD:
                    key = f"{sample.name.removeprefix('sixfold:')} of {sample.labels.get('model_name', '')}"
                    held[key] = held.get(key, 0.0) + sample.value
                elif sample.name == "sixfold:http_requests_total" and sample.labels["status"] == "500":
                    totals["answers with status 500"] = totals.get("answers with status 500", 0.0) + sample.value
                elif sample.labels.get("reason") in ("internal_error", "model_step_failed") and sample.value:
                    key = f"{sample.labels['reason']} of {sample.labels['model_name']}"
                    totals[key] = totals.get(key, 0.0) + sample.value
        return Census(processes=await asyncio.to_thread(self._processes), held=held, totals=totals)

    def _processes(self) -> dict[str, Process]:
        root = psutil.Process(self._server.pid)
        named = self.workers()
        found: dict[str, Process] = {}
        for process in (root, *root.children(recursive=True)):
            try:
                role = SERVER if process.pid == root.pid else named.get(process.pid) or self._helper(process, named)
                memory = process.memory_full_info()
                figures = Process(
                    pss_mib=memory.pss / _MIB,
                    rss_mib=memory.rss / _MIB,
                    num_fds=process.num_fds(),
                    num_threads=process.num_threads(),
                )
            except psutil.NoSuchProcess:
                continue
            number = sum(each == role or each.startswith(f"{role} (") for each in found)
            found[f"{role} ({number + 1})" if number else role] = figures
        return found

    @staticmethod
    def _helper(process: psutil.Process, named: Mapping[int, str]) -> str:
        return f"helper of {named.get(process.ppid(), SERVER)}"


def handles(census: Census) -> dict[str, tuple[int, int]]:
    """Descriptors and threads of each process."""
    return {role: (each.num_fds, each.num_threads) for role, each in census.processes.items()}


def grown(baseline: Census, now: Census) -> list[str]:
    """Where there are more descriptors or threads than at the baseline, or what is held still; in words."""
    found = [f"{name} is {value:g}" for name, value in now.held.items() if value > baseline.held.get(name, 0.0)]
    for role, (num_fds, num_threads) in handles(now).items():
        before = baseline.processes.get(role)
        if before is None:
            found.append(f"a process more: {role}")
            continue
        if num_fds > before.num_fds:
            found.append(f"{role} has {num_fds} descriptors instead of {before.num_fds}")
        if num_threads > before.num_threads:
            found.append(f"{role} has {num_threads} threads instead of {before.num_threads}")
    return found
