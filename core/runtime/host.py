"""Hosts the models of one server: brings entries up as worker processes, replaces workers that die, drains what goes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sixfold.core.batching.budget import ObjectiveKind
from sixfold.core.batching.model import ModelInfo
from sixfold.core.config import ModelEntry
from sixfold.core.errors import ConfigError, InvalidRequest, NotReady, SixfoldError, UsageError, WorkerDied
from sixfold.core.family import Family
from sixfold.core.plugins import Plugins
from sixfold.core.registry import ChangedEntry, RegistryDiff, ResolvedModel, declared_variants, resolve_entry
from sixfold.core.runtime import wire
from sixfold.core.runtime.quantization.policy import QuantizationPolicy
from sixfold.core.runtime.worker_replica import WorkerReplica
from sixfold.core.serving.directory import ModelState, OptionsChange

_log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.2
_MAX_BACKOFF_S = 30.0


class Report(Protocol):
    """Told how far fetching and loading are; from any thread."""

    def update(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        """Bytes were fetched or converted."""
        ...

    def update_fraction(self, what: str, fraction: float) -> None:
        """``fraction`` of ``what``, 0 to 1, is done."""
        ...


class NoReport:
    """A `Report` that shows nothing."""

    def update(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        """Shows nothing."""

    def update_fraction(self, what: str, fraction: float) -> None:
        """Shows nothing."""


class ModelSlot:
    """One entry of the registry while it is hosted: a `HostedModel`.

    Args:
        entry: The entry.
        plugins: For resolving it.
        cache_dir: Where its files are kept.
        report: Progress of fetching and loading.
        owner_of: Tells which entry has a name; None if it is free.
    """

    def __init__(
        self,
        entry: ModelEntry,
        plugins: Plugins,
        cache_dir: Path,
        report: Report,
        owner_of: Callable[[str], str | None],
    ) -> None:
        self.entry = entry
        self._owner_of = owner_of
        self._variants = declared_variants(entry, plugins)
        self._adjusting = asyncio.Lock()  # held while workers are told, so that one that joins misses nothing
        self._plugins = plugins
        self._cache_dir = cache_dir
        self._report = report
        self._state = ModelState.LOADING
        self._resolved: ResolvedModel | None = None
        self._info: ModelInfo | None = None
        self._workers: dict[int, WorkerReplica] = {}  # by replica index, those that take requests
        self._keepers: list[asyncio.Task[None]] = []
        self._created_s = int(time.time())
        self._stopping = False
        self.error: str | None = None
        self.replaced = asyncio.Event()  # set, and a new one made, whenever a worker took another's place

    @property
    def name(self) -> str:
        """The registry's name."""
        return self.entry.name

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names that clients may use."""
        return self.entry.aliases

    @property
    def variants(self) -> tuple[str, ...]:
        """Further names that its family offers; () until its files are there, where these tell the family."""
        return self._variants

    @property
    def family(self) -> Family | None:
        """The family that serves it; None until its files told, when the entry names none."""
        if self._resolved is not None:
            return self._resolved.family
        return self._plugins.families.get(self.entry.family or "")

    @property
    def state(self) -> ModelState:
        """Where it is in its life."""
        return self._state

    @property
    def info(self) -> ModelInfo | None:
        """What the loaded model tells about itself."""
        return self._info

    @property
    def replicas(self) -> Sequence[WorkerReplica]:
        """Those that take requests now."""
        return tuple(self._workers.values())

    @property
    def created_s(self) -> int:
        """Unix time at which the entry came."""
        return self._created_s

    async def bring_up(self) -> None:
        """Fetches, loads and keeps all replicas; returns when each is ready once, or with ``error`` set."""
        try:
            resolved = await self.resolve(self.entry)
            self._variants = self._free_variants(resolved)
            self._resolved = resolved
            for index in range(self.entry.replicas):
                worker = await self._start_worker(index)
                self._keepers.append(asyncio.create_task(self._keep(index, worker)))
        except SixfoldError as error:
            self.error = str(error)
            self._state = ModelState.FAILED
            _log.error("model %s: %s", self.name, error)
            await self.stop(0.0, state=ModelState.FAILED)
        else:
            self._state = ModelState.READY
            self._report.update_fraction(f"loading {self.name}", 1.0)

    async def resolve(self, entry: ModelEntry) -> ResolvedModel:
        """Fetches what an entry needs.

        Raises:
            SixfoldError: It can't be had.
        """
        return await asyncio.to_thread(resolve_entry, entry, self._plugins, self._cache_dir, self._report.update)

    def _free_variants(self, resolved: ResolvedModel) -> tuple[str, ...]:
        """The names that the family offers, if nobody else has them."""
        variants = resolved.family.variants(resolved.options)
        for name in variants:
            owner = self.name if name in resolved.entry.names else self._owner_of(name)
            if owner is not None and (owner != self.name or name in resolved.entry.names):
                raise ConfigError(f"the name {name!r} is that of the model {owner!r} already. Choose another.")
        return variants

    async def adjust(self, change: OptionsChange) -> None:
        """See `HostedModel.adjust`."""
        async with self._adjusting:
            resolved = self._resolved
            if resolved is None or self._state is not ModelState.READY:
                raise NotReady(f"The model {self.name!r} is not ready. Try again soon.", retry_after_s=5.0)
            new = dataclasses.replace(resolved, options=change(resolved.options))
            try:
                if not await self._tell(resolved, new):
                    raise InvalidRequest(f"The model {self.name!r} can't change these options while it serves.")
            except ConfigError as error:
                raise InvalidRequest(str(error)) from error

    async def take_over(self, new: ResolvedModel) -> bool:
        """Lets the replicas take over a changed entry; False if the model has to be loaded anew for it.

        Raises:
            ConfigError: It can't be, and would not load either; all is as before.
        """
        async with self._adjusting:
            resolved = self._resolved
            if resolved is None or self._state is not ModelState.READY:
                return False
            if (new.family, new.path, new.interpreter) != (resolved.family, resolved.path, resolved.interpreter):
                return False
            told = await self._tell(resolved, new)
            if told:
                self.entry = new.entry
            return told

    async def _tell(self, old: ResolvedModel, new: ResolvedModel) -> bool:
        """Lets all workers take over new options, or none."""
        if not new.family.adjusts(old.options, new.options):
            return False
        variants = self._free_variants(new)
        told: list[WorkerReplica] = []
        try:
            for worker in self.replicas:
                with contextlib.suppress(WorkerDied):  # whoever takes its place is loaded with what holds then
                    await worker.adjust(new.options)
                    told.append(worker)
        except BaseException:
            for worker in told:
                with contextlib.suppress(WorkerDied):
                    await worker.adjust(old.options)
            raise
        self._resolved, self._variants = new, variants
        return True

    async def _start_worker(self, index: int) -> WorkerReplica:
        resolved = self._resolved
        assert resolved is not None
        worker = WorkerReplica(
            resolved.family,
            load_message(resolved, num_cpus=len(os.sched_getaffinity(0))),
            interpreter=resolved.interpreter,
            on_progress=lambda fraction, _what: self._report.update_fraction(f"loading {self.name}", fraction),
        )
        try:
            info = await worker.start()
            async with self._adjusting:
                current = self._resolved
                assert current is not None
                if current.options is not resolved.options:  # changed while it loaded
                    await worker.adjust(current.options)
                self._info = info
                self._workers[index] = worker
        except BaseException:  # cancelled too: no process may stay behind
            worker.kill()
            await worker.stop(0.0)
            raise
        return worker

    async def _keep(self, index: int, worker: WorkerReplica) -> None:
        """Replaces a worker whenever it ends, until it is drained; backs off while it does not come up."""
        backoff_s = _FIRST_BACKOFF_S
        while not self._stopping:
            began_s = time.monotonic()
            await worker.ended.wait()
            self._workers.pop(index, None)
            while not self._stopping:
                if time.monotonic() - began_s > _MAX_BACKOFF_S:
                    backoff_s = _FIRST_BACKOFF_S
                await asyncio.sleep(backoff_s)
                backoff_s = min(2.0 * backoff_s, _MAX_BACKOFF_S)
                try:
                    worker = await self._start_worker(index)
                except SixfoldError as error:
                    _log.error("model %s: replica %d did not come back: %s", self.name, index, error)
                else:
                    _log.warning("model %s: replica %d was replaced", self.name, index)
                    replaced, self.replaced = self.replaced, asyncio.Event()
                    replaced.set()
                    break

    def rename(self, entry: ModelEntry) -> None:
        """Takes over an entry that differs in its aliases only."""
        self.entry = entry

    async def stop(self, timeout_s: float, *, state: ModelState = ModelState.DRAINING) -> None:
        """Takes no new requests, finishes those that run within the time, ends the workers."""
        self._state = state
        self._stopping = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(worker.stop(timeout_s) for worker in self._workers.values()))
        self._workers.clear()


def load_message(resolved: ResolvedModel, *, num_cpus: int) -> wire.Load:
    """What a worker is told about an entry."""
    entry = resolved.entry
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
        quantization=_written(entry.quantization),
        max_queue_units=entry.limits.max_queue_units,
        max_running_sequences=entry.limits.max_running_sequences,
        max_step_units=entry.limits.max_step_units,
        request_timeout_s=entry.limits.request_timeout_s,
        objective_kind=kind.value,
        objective_target_s=targets[kind],
    )


def _written(policy: QuantizationPolicy | None) -> dict[str, Any] | None:
    # What was not given is not sent: of a skip rule, exactly one field is.
    return None if policy is None else policy.model_dump(mode="json", exclude_unset=True)


class ModelHost:
    """All models of one server: the `Directory` behind its HTTP face. Used in one event loop.

    Args:
        plugins: For resolving entries.
        cache_dir: Where model files are kept.
        drain_timeout_s: How long a removed or replaced model may finish its requests.
        report: Progress of fetching and loading.
    """

    def __init__(
        self,
        plugins: Plugins,
        *,
        cache_dir: Path,
        drain_timeout_s: float,
        report: Report | None = None,
    ) -> None:
        self._plugins = plugins
        self._cache_dir = cache_dir
        self._drain_timeout_s = drain_timeout_s
        self._report = report or NoReport()
        self._slots: dict[str, ModelSlot] = {}
        self._names: dict[str, ModelSlot] = {}
        self._retiring: set[ModelSlot] = set()  # no longer in the registry, still finishing requests
        self._rising: set[ModelSlot] = set()  # new versions that load beside the old ones
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False

    def find(self, name: str) -> ModelSlot | None:
        """The model of this name, alias or variant."""
        found = self._names.get(name)
        return found or next((slot for slot in self._slots.values() if name in slot.variants), None)

    def models(self) -> Sequence[ModelSlot]:
        """All models, in the order of the configuration."""
        return tuple(self._slots.values())

    @property
    def ready(self) -> bool:
        """Whether every model is ready."""
        return not self._draining and all(slot.state is ModelState.READY for slot in self._slots.values())

    @property
    def draining(self) -> bool:
        """Whether the server is going down."""
        return self._draining

    def announce(self, entries: Mapping[str, ModelEntry]) -> None:
        """Makes the first models known, as loading: from here on nobody is told that they do not exist."""
        for entry in entries.values():
            if entry.name not in self._slots:
                self._add_slot(self._new_slot(entry))

    async def start(self, entries: Mapping[str, ModelEntry]) -> None:
        """Brings the first models up, one after another (loading is bound by memory and disk); returns when all have
        settled.

        Raises:
            UsageError: No model came up; the message holds each one's reason.
        """
        self.announce(entries)
        for slot in list(self._slots.values()):
            await slot.bring_up()
        failed = [f"{slot.name}: {slot.error}" for slot in self._slots.values() if slot.error is not None]
        if failed and len(failed) == len(self._slots):
            raise UsageError("No model could be loaded.\n" + "\n".join(failed))

    def apply(self, change: RegistryDiff, entries: Mapping[str, ModelEntry]) -> None:
        """Makes a new configuration true: added models load, removed ones drain, changed ones are swapped when ready.

        Returns at once; the work goes on in the background.
        """
        for entry in change.removed:
            self._retire(self._slots.pop(entry.name))
        for changed in change.changed:
            if changed.fields == frozenset({"aliases"}):
                self._slots[changed.new.name].rename(changed.new)
            else:
                self._spawn(self._change(changed))
        for entry in change.added:
            slot = self._new_slot(entry)
            self._slots[entry.name] = slot
            self._spawn(slot.bring_up())
        self._slots = {name: self._slots[name] for name in entries if name in self._slots}
        self._index()

    async def _change(self, changed: ChangedEntry) -> None:
        """Changed options are taken over by the running model where its family can; else the model is swapped."""
        slot = self._slots.get(changed.new.name)
        if slot is not None and changed.fields <= {"options", "aliases"}:
            try:
                if await slot.take_over(await slot.resolve(changed.new)):
                    self._index()
                    return
            except SixfoldError as error:
                _log.error("model %s keeps its old options: %s", changed.new.name, error)
                return
        await self._swap(changed.new)

    async def _swap(self, entry: ModelEntry) -> None:
        """The old version serves until the new one is ready; a new one that fails changes nothing."""
        new = self._new_slot(entry)
        self._rising.add(new)
        await new.bring_up()
        self._rising.discard(new)
        old = self._slots.get(entry.name)
        if new.error is not None and old is not None and old.error is None:
            _log.error("model %s keeps its old version: the new one failed: %s", entry.name, new.error)
            return
        if old is None:  # removed meanwhile
            self._retire(new)
            return
        self._slots[entry.name] = new
        self._index()
        self._retire(old)

    def _retire(self, slot: ModelSlot) -> None:
        self._retiring.add(slot)
        self._spawn(self._stop(slot))

    async def _stop(self, slot: ModelSlot) -> None:
        await slot.stop(self._drain_timeout_s)
        self._retiring.discard(slot)

    def _new_slot(self, entry: ModelEntry) -> ModelSlot:
        return ModelSlot(entry, self._plugins, self._cache_dir, self._report, self._owner_of)

    def _owner_of(self, name: str) -> str | None:
        slot = self.find(name)
        return None if slot is None else slot.name

    def _add_slot(self, slot: ModelSlot) -> None:
        self._slots[slot.name] = slot
        self._index()

    def _index(self) -> None:
        self._names = {name: slot for slot in self._slots.values() for name in slot.entry.names}

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Waits until the work of every `apply` so far is done, retired models included."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    def begin_drain(self) -> None:
        """No model takes new requests any more."""
        self._draining = True

    async def close(self, timeout_s: float) -> None:
        """Finishes what runs within the time, then ends all workers."""
        self._draining = True
        for task in list(self._tasks):  # models that still load must not come up behind our back
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(
            *(slot.stop(timeout_s) for slot in {*self._slots.values(), *self._retiring, *self._rising})
        )
