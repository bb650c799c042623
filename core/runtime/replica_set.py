"""The worker processes of one loaded model: brought up together, replaced one by one when they die, ended together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence

from sixfold.core.batching.budget import ObjectiveKind
from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import SixfoldError, WorkerDied
from sixfold.core.memory.machine import process_bytes
from sixfold.core.memory.need import HOST
from sixfold.core.parallel.planner import ParallelChoice
from sixfold.core.parallel.settings import ParallelSettings
from sixfold.core.registry import ResolvedModel
from sixfold.core.runtime import wire
from sixfold.core.runtime.worker_replica import WorkerReplica

_log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.2
_MAX_BACKOFF_S = 30.0
_RETRY_S = 1.0


class ReplicaSet:
    """The replicas of one model from one load to its end. Used in one event loop.

    Args:
        resolved: What to load.
        num_replicas: Workers.
        device: Where it goes, for what is measured.
        parallel: The ranks of each replica; None for one process.
        on_progress: Called with the share of a worker's loading that is done.
    """

    def __init__(
        self,
        resolved: ResolvedModel,
        *,
        num_replicas: int,
        device: str,
        on_progress: Callable[[float], None],
        parallel: ParallelChoice | None = None,
    ) -> None:
        self._parallel = parallel
        self._resolved = resolved
        self._num_replicas = num_replicas
        self._device = device
        self._on_progress = on_progress
        self._workers: dict[int, WorkerReplica] = {}  # by replica index, those that take requests
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = False
        self._adjusting = asyncio.Lock()  # held while workers are told, so that one that joins misses nothing
        self._load_s: float | None = None  # what the last worker took
        self._gone_since_s: float | None = None  # when the last of them ended
        self.info: ModelInfo | None = None
        self.replaced = asyncio.Event()  # set, and a new one made, whenever a worker took another's place

    @property
    def workers(self) -> Sequence[WorkerReplica]:
        """Those that take requests now."""
        return tuple(self._workers.values())

    @property
    def measured_bytes(self) -> dict[str, int]:
        """What the workers have now of the host's memory, and what they had of their GPU once they were loaded."""
        pids = [worker.pid for worker in self._workers.values()]
        found = {HOST: sum(process_bytes(pid) or 0 for pid in pids if pid is not None)}
        on_device = [worker.device_bytes for worker in self._workers.values() if worker.device_bytes is not None]
        if on_device:
            found[self._device] = sum(on_device)
        return found

    def back_in_s(self, gone: WorkerReplica | None = None) -> float:
        """When a request that finds no worker may try again: a worker that replaces another takes as long as that took.

        Args:
            gone: One that has ended and may still be among the workers.
        """
        if self._load_s is None or any(worker is not gone for worker in self.workers):
            return _RETRY_S
        gone_s = 0.0 if self._gone_since_s is None else time.monotonic() - self._gone_since_s
        return max(_RETRY_S, _FIRST_BACKOFF_S + self._load_s - gone_s)

    async def start(self) -> None:
        """Loads one replica after another; when one fails, those before it are ended.

        Raises:
            SixfoldError: One can't be loaded.
        """
        try:
            for index in range(self._num_replicas):
                worker = await self._start_worker(index)
                self._keepers.append(asyncio.create_task(self._keep(index, worker)))
        except BaseException:  # cancelled too: no process may stay behind
            await self.stop(0.0)
            raise

    async def _start_worker(self, index: int) -> WorkerReplica:
        resolved = self._resolved
        worker = WorkerReplica(
            resolved.family,
            load_message(resolved, num_cpus=len(os.sched_getaffinity(0)), parallel=self._parallel, replica=index),
            interpreter=resolved.interpreter,
            on_progress=lambda fraction, _what: self._on_progress(fraction),
            back_in_s=self.back_in_s,
        )
        began_s = time.monotonic()
        try:
            info = await worker.start()
            self._load_s = time.monotonic() - began_s
            async with self._adjusting:
                if self._resolved.options is not resolved.options:  # changed while it loaded
                    await worker.adjust(self._resolved.options)
                self.info = info
                self._workers[index] = worker
                self._gone_since_s = None
        except BaseException:
            worker.kill()
            await worker.stop(0.0)
            raise
        return worker

    async def adjust(self, new: ResolvedModel) -> None:
        """Lets all workers take over new options, or none; those that come later are loaded with them.

        Raises:
            ConfigError: One can't.
        """
        async with self._adjusting:
            told: list[WorkerReplica] = []
            try:
                for worker in self.workers:
                    with contextlib.suppress(WorkerDied):  # whoever takes its place is loaded with what holds then
                        await worker.adjust(new.options)
                        told.append(worker)
            except BaseException:
                for worker in told:
                    with contextlib.suppress(WorkerDied):
                        await worker.adjust(self._resolved.options)
                raise
            self._resolved = new

    async def _keep(self, index: int, worker: WorkerReplica) -> None:
        """Replaces a worker whenever it ends, until it is drained; backs off while it does not come up."""
        name = self._resolved.entry.name
        backoff_s = _FIRST_BACKOFF_S
        while not self._stopping:
            began_s = time.monotonic()
            await worker.ended.wait()
            self._workers.pop(index, None)
            if not self._workers:
                self._gone_since_s = time.monotonic()
            while not self._stopping:
                if time.monotonic() - began_s > _MAX_BACKOFF_S:
                    backoff_s = _FIRST_BACKOFF_S
                await asyncio.sleep(backoff_s)
                backoff_s = min(2.0 * backoff_s, _MAX_BACKOFF_S)
                try:
                    worker = await self._start_worker(index)
                except SixfoldError as error:
                    _log.error("model %s: replica %d did not come back: %s", name, index, error)
                except Exception:  # whatever it is, the next try may not meet it
                    _log.exception("model %s: replica %d did not come back", name, index)
                else:
                    _log.warning("model %s: replica %d was replaced", name, index)
                    replaced, self.replaced = self.replaced, asyncio.Event()
                    replaced.set()
                    break

    async def stop(self, timeout_s: float) -> None:
        """Takes no new requests, finishes those that run within the time, ends the workers."""
        self._stopping = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(worker.stop(timeout_s) for worker in self._workers.values()))
        self._workers.clear()


def load_message(
    resolved: ResolvedModel, *, num_cpus: int, parallel: ParallelChoice | None = None, replica: int = 0
) -> wire.Load:
    """What a worker is told about an entry."""
    entry = resolved.entry
    settings = entry.parallel if isinstance(entry.parallel, ParallelSettings) else ParallelSettings()
    policy = entry.quantization
    targets = {kind: getattr(entry.objective, kind.value, None) for kind in ObjectiveKind}
    kind = next((kind for kind, target in targets.items() if target is not None), ObjectiveKind.THROUGHPUT)
    return wire.Load(
        model_name=entry.name,
        family=resolved.family.name,
        path=str(resolved.path),
        device=entry.device,
        num_threads=num_cpus,
        num_pool_threads=max(2, num_cpus),
        options=resolved.options.model_dump(mode="json"),
        # What was not given is not sent: of a skip rule, exactly one field is.
        quantization=None if policy is None else policy.model_dump(mode="json", exclude_unset=True),
        max_queue_units=entry.limits.max_queue_units,
        max_queue_s=entry.limits.max_queue_s,
        max_running_sequences=entry.limits.max_running_sequences,
        max_step_units=entry.limits.max_step_units,
        request_timeout_s=entry.limits.request_timeout_s,
        watchdog_timeout_s=entry.limits.hangs_after_s,
        objective_kind=kind.value,
        objective_target_s=targets[kind],
        replica=replica,
        ranks=None
        if parallel is None or parallel.degrees.num_ranks == 1
        else wire.Ranks(
            degrees=parallel.degrees, step_timeout_s=settings.step_timeout_s, load_timeout_s=settings.load_timeout_s
        ),
    )
