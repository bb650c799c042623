"""Hosts the models of one server: brings entries up as worker processes within the machine's memory, drains what goes."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path

from sixfold.core.config import ModelEntry
from sixfold.core.errors import SixfoldError, UsageError
from sixfold.core.memory.ledger import MemoryLedger
from sixfold.core.memory.machine import Machine, process_bytes
from sixfold.core.memory.need import HOST, Claim, MemoryKind
from sixfold.core.memory.residency import Phase, Residency
from sixfold.core.plugins import Plugins
from sixfold.core.registry import ChangedEntry, RegistryDiff
from sixfold.core.runtime.model_slot import ModelSlot
from sixfold.core.runtime.report import NoReport, Report
from sixfold.core.runtime.residence import Residence
from sixfold.core.serving.directory import ModelState, takes_requests

_log = logging.getLogger(__name__)


class ModelHost:
    """All models of one server: the `Directory` behind its HTTP face. Used in one event loop.

    Args:
        plugins: For resolving entries.
        cache_dir: Where model files are kept.
        drain_timeout_s: How long a removed or replaced model may finish its requests.
        report: Progress of fetching and loading.
        machine: The devices whose memory is kept account of; none unless given.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        plugins: Plugins,
        *,
        cache_dir: Path,
        drain_timeout_s: float,
        report: Report | None = None,
        machine: Machine | None = None,
        clock: Callable[[], float] = time.monotonic,
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
        self._machine = machine or Machine(devices=())
        self._clock = clock
        self.ledger = MemoryLedger({device.name: device.total_bytes for device in self._machine.devices})
        own = Claim(device=HOST, kind=MemoryKind.PROCESS, num_bytes=process_bytes(os.getpid()) or 0)
        self.ledger.claim(self, "the server itself", (own,))
        self._residency = Residency(self.ledger, clock)
        self._timer: asyncio.TimerHandle | None = None

    def find(self, name: str) -> ModelSlot | None:
        """The model of this name, alias or variant."""
        found = self._names.get(name)
        return found or next((slot for slot in self._slots.values() if name in slot.variants), None)

    def models(self) -> Sequence[ModelSlot]:
        """All models, in the order of the configuration."""
        return tuple(self._slots.values())

    def residences(self) -> Sequence[Residence]:
        """The places in memory of all models."""
        return tuple(slot.residence for slot in self._slots.values())

    @property
    def ready(self) -> bool:
        """Whether every model takes requests, or will be loaded for the first one. While a worker is being replaced, its model
        does as long as it has another."""
        return not self._draining and all(
            slot.state is ModelState.UNLOADED or takes_requests(slot) for slot in self._slots.values()
        )

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
        """Brings the first models up, the most important first and one after another (loading is bound by memory and
        disk); returns when all have settled.

        Raises:
            UsageError: No model came up; the message holds each one's reason.
        """
        self.announce(entries)
        for slot in sorted(self._slots.values(), key=lambda slot: -slot.entry.priority):
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
            if changed.needs_reload:
                self._spawn(self._change(changed))
            else:
                self._slots[changed.new.name].change(changed.new)
        for entry in change.added:
            slot = self._new_slot(entry)
            self._slots[entry.name] = slot
            self._spawn(slot.bring_up())
        self._slots = {name: self._slots[name] for name in entries if name in self._slots}
        self._index()

    async def _change(self, changed: ChangedEntry) -> None:
        """Changed options are taken over by the running model where its family can; else the model is swapped."""
        slot = self._slots.get(changed.new.name)
        if slot is not None and changed.keeps_process:
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
            self._retire(new)
            return
        if old is None:  # removed meanwhile
            self._retire(new)
            return
        self._slots[entry.name] = new
        self._index()
        self._retire(old)
        if entry.load == "eager" and new.residence.phase is Phase.OUT:  # there was no room beside the old one
            new.residence.ask_to_load()

    def _retire(self, slot: ModelSlot) -> None:
        slot.begin_stop()
        self._retiring.add(slot)
        self._spawn(self._stop(slot))

    async def _stop(self, slot: ModelSlot) -> None:
        await slot.stop(self._drain_timeout_s)
        self._retiring.discard(slot)
        self._turn()

    def _new_slot(self, entry: ModelEntry) -> ModelSlot:
        return ModelSlot(
            entry,
            self._plugins,
            self._cache_dir,
            self._report,
            machine=self._machine,
            residency=self._residency,
            clock=self._clock,
            turn=self._turn,
            owner_of=self._owner_of,
        )

    def _owner_of(self, name: str) -> str | None:
        slot = self.find(name)
        return None if slot is None else slot.name

    def _turn(self) -> None:
        """Lets the memory be divided anew, and once more when that says so."""
        if self._draining:
            return
        due_s = self._residency.turn()
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = None if due_s is None else loop.call_later(max(0.0, due_s - self._clock()), self._turn)

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
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):  # models that still load must not come up behind our back
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(
            *(slot.stop(timeout_s) for slot in {*self._slots.values(), *self._retiring, *self._rising})
        )
