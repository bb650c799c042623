"""Replicas as processes of the agent's machine: a site without a cluster engine."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from sixfold.scaling.agent.config import AcceleratorSettings, ReplicaSettings
from sixfold.scaling.agent.reconcile import Action, Held, Slot
from sixfold.scaling.hub.http_client import CallFailed, HttpClient
from sixfold.scaling.hub.model import Capacity

_PROBE_S = 0.25
_RESTART_S = 5.0
"""A replica that ends by itself keeps its place for this long, so that one that cannot start does not spin."""

_PR_SET_PDEATHSIG = 1

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Replica:
    """One process; its task owns it."""

    slot: Slot
    units: int
    url: str = ""
    ready: bool = False
    stopping: bool = False
    task: asyncio.Task[None] | None = None


class ProcessEngine:
    """An `Engine` of child processes. They end with the agent, however it ends: no accelerator is held by what nobody counts.

    Args:
        accelerators: What there is.
        models: How replicas are run.
        host: Under which this machine's replicas are reached.
    """

    def __init__(
        self,
        accelerators: Mapping[str, AcceleratorSettings],
        models: Mapping[str, ReplicaSettings],
        *,
        host: str = "127.0.0.1",
    ) -> None:
        self._host = host
        self._accelerators = accelerators
        self._models = models
        self._replicas: list[_Replica] = []

    def capacities(self) -> tuple[Capacity, ...]:
        """See `Engine`."""
        return tuple(
            Capacity(accelerator=name, num_units=item.units, price_per_hour=item.price_per_hour)
            for name, item in sorted(self._accelerators.items())
        )

    def held(self) -> tuple[Held, ...]:
        """See `Engine`."""
        found: list[Held] = []
        for slot in sorted({replica.slot for replica in self._replicas}):
            own = [replica for replica in self._replicas if replica.slot == slot]
            active = [replica for replica in own if not replica.stopping]
            ready = sum(replica.ready for replica in active)
            stopping = len(own) - len(active)
            found.append(
                Held(slot=slot, units=own[0].units, num_active=len(active), num_ready=ready, num_stopping=stopping)
            )
        return tuple(found)

    def act(self, action: Action) -> None:
        """See `Engine`. The youngest stop first: the oldest have the warmest caches."""
        if action.slot.model not in self._models:
            _log.error(
                "models.%s is in the plan and not in the agent's configuration; nothing is started", action.slot.model
            )
            return
        for _ in range(action.num_replicas):
            replica = _Replica(action.slot, action.units)
            self._replicas.append(replica)
            replica.task = asyncio.create_task(self._run(replica))
            replica.task.add_done_callback(partial(self._leave, replica))
        active = [one for one in self._replicas if one.slot == action.slot and not one.stopping]
        for replica in active[::-1][: max(0, -action.num_replicas)]:
            replica.stopping, replica.ready = True, False
            if replica.task is not None:
                replica.task.cancel()

    def urls(self) -> dict[str, list[str]]:
        """Addresses of the ready replicas, by model."""
        found: dict[str, list[str]] = {}
        for replica in self._replicas:
            if replica.ready:
                found.setdefault(replica.slot.model, []).append(replica.url)
        return found

    async def close(self) -> None:
        """Stops every replica and waits for them."""
        tasks: list[asyncio.Task[None]] = []
        for replica in self._replicas:
            if replica.task is not None:
                tasks.append(replica.task)
                if not replica.stopping:  # one that drains already must not be told twice: that would cut its requests
                    replica.stopping = True
                    replica.task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, replica: _Replica) -> None:
        """From the start of a process until it is gone; cancelled to stop it."""
        how = self._models[replica.slot.model]
        try:
            process = await self._start(replica, how.command)
        except OSError as error:
            _log.error("models.%s: no replica can be started with %s: %s", replica.slot.model, how.command[0], error)
            await asyncio.sleep(_RESTART_S)
            return
        try:
            await self._probe(replica, process, how.health)
            status = await process.wait()
            _log.warning("a replica of %s ended with status %s", replica.slot.model, status)
            replica.ready = False
            await asyncio.sleep(_RESTART_S)
        finally:
            replica.ready = False
            await _end(process, how.stop_s)

    async def _start(self, replica: _Replica, command: Sequence[str]) -> asyncio.subprocess.Process:
        port = _free_port()
        replica.url = f"http://{self._host}:{port}"
        filled = [
            part.replace("{port}", str(port)).replace("{accelerator}", replica.slot.accelerator) for part in command
        ]
        return await asyncio.create_subprocess_exec(*filled, preexec_fn=_end_with_parent())

    async def _probe(self, replica: _Replica, process: asyncio.subprocess.Process, path: str) -> None:
        client = HttpClient(replica.url, timeout_s=2.0)
        while process.returncode is None:
            try:
                await client.call("GET", path)
            except CallFailed:
                await asyncio.sleep(_PROBE_S)
            else:
                replica.ready = True
                return

    def _leave(self, replica: _Replica, task: asyncio.Task[None]) -> None:
        """Its task is over, however that came: cancelled before it began, too."""
        self._replicas.remove(replica)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a defect ended a replica of %s", replica.slot.model, exc_info=error)


async def _end(process: asyncio.subprocess.Process, grace_s: float) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(grace_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _end_with_parent() -> Callable[[], None] | None:
    """What a child runs before its program, so that the kernel ends it when the agent is killed; Linux only."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)  # loaded here: between fork and exec nothing may be
    return partial(_ask_for_signal, library)


def _ask_for_signal(library: ctypes.CDLL) -> None:
    library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
