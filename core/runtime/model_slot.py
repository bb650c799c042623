"""One entry of the registry in a running server: its files, its name and its state; `Residence` is its place in memory."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sixfold.core.batching.model import ModelInfo
from sixfold.core.config import ModelEntry
from sixfold.core.errors import ConfigError, InvalidRequest, NotReady, SixfoldError
from sixfold.core.family import Family
from sixfold.core.memory.forecast import forecast
from sixfold.core.memory.machine import Machine
from sixfold.core.memory.residency import Phase, Residency
from sixfold.core.plugins import Plugins
from sixfold.core.registry import ResolvedModel, declared_variants, resolve_entry
from sixfold.core.runtime.report import Report
from sixfold.core.runtime.residence import Residence
from sixfold.core.runtime.worker_replica import WorkerReplica
from sixfold.core.serving.directory import ModelState, OptionsChange

_log = logging.getLogger(__name__)


class ModelSlot:
    """One entry of the registry while it is hosted: a `HostedModel`.

    Args:
        entry: The entry.
        plugins: For resolving it.
        cache_dir: Where its files are kept.
        report: Progress of fetching and loading.
        machine: The devices.
        residency: Where it asks for memory.
        clock: Monotonic seconds.
        turn: Lets the residency decide anew.
        owner_of: Tells which entry has a name; None if it is free.

    Attributes:
        residence: Its place in memory.
    """

    def __init__(
        self,
        entry: ModelEntry,
        plugins: Plugins,
        cache_dir: Path,
        report: Report,
        *,
        machine: Machine,
        residency: Residency,
        clock: Callable[[], float],
        turn: Callable[[], None],
        owner_of: Callable[[str], str | None],
    ) -> None:
        self._owner_of = owner_of
        self._variants = declared_variants(entry, plugins)
        self._adjusting = asyncio.Lock()
        self._plugins = plugins
        self._cache_dir = cache_dir
        self._report = report
        self._machine = machine
        self._turn = turn
        self._resolved: ResolvedModel | None = None
        self._created_s = int(time.time())
        self._draining = False
        self.residence = Residence(entry, report, residency=residency, clock=clock, turn=turn)

    @property
    def entry(self) -> ModelEntry:
        """The entry, as it is in force."""
        return self.residence.entry

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
    def error(self) -> str | None:
        """Why it can't be loaded, if it can't."""
        return self.residence.error

    @property
    def state(self) -> ModelState:
        """Where it is in its life."""
        residence = self.residence
        if residence.error is not None:
            return ModelState.FAILED
        if self._draining:
            return ModelState.DRAINING
        if not residence.settled.is_set() or residence.phase is Phase.LOADING:
            return ModelState.LOADING
        return ModelState.READY if residence.phase is Phase.IN else ModelState.UNLOADED

    @property
    def loads_on_demand(self) -> bool:
        """See `HostedModel`."""
        return self.residence.settled.is_set() and not self._draining and self.error is None

    @property
    def info(self) -> ModelInfo | None:
        """What the model told about itself when it was loaded last."""
        return self.residence.info

    @property
    def replicas(self) -> Sequence[WorkerReplica]:
        """Those that take requests now."""
        return () if self.residence.replicas is None else self.residence.replicas.workers

    @property
    def back_in_s(self) -> float:
        """See `HostedModel`."""
        return 1.0 if self.residence.replicas is None else self.residence.replicas.back_in_s()

    @property
    def request_timeout_s(self) -> float | None:
        """See `HostedModel`."""
        return self.entry.limits.request_timeout_s

    @property
    def replaced(self) -> asyncio.Event:
        """Set when the next worker has taken another's place."""
        assert self.residence.replicas is not None, "only loaded models have workers"
        return self.residence.replicas.replaced

    @property
    def created_s(self) -> int:
        """Unix time at which the entry came."""
        return self._created_s

    def enter(self) -> asyncio.Future[None] | None:
        """See `HostedModel`."""
        return self.residence.enter()

    def leave(self) -> None:
        """A user has gone."""
        self.residence.leave()

    async def bring_up(self) -> None:
        """Fetches its files and, unless it loads on demand, loads it; returns when it has settled, maybe with ``error``."""
        try:
            resolved = await self.resolve(self.entry)
            self._variants = self._free_variants(resolved)
            self._resolved = resolved
            expected = await asyncio.to_thread(forecast, resolved, self._machine)
        except Exception as error:  # of a plugin or of the disk; the other models must not wait for it
            if not isinstance(error, SixfoldError):
                _log.exception("model %s could not be brought up", self.name)
            self.residence.fail(str(error) or type(error).__name__)
            return
        if self._draining:
            return
        self.residence.resolve(self._resolved, expected)
        if self.entry.load == "on_demand":
            self.residence.settled.set()
            return
        self.residence.ask_to_load()
        await self.residence.settled.wait()

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
            if resolved is None or self.state is not ModelState.READY:
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
            old = self._resolved
            if old is None or self.state not in (ModelState.READY, ModelState.UNLOADED):
                return False
            if (new.family, new.path, new.interpreter) != (old.family, old.path, old.interpreter):
                return False
            told = await self._tell(old, new)
            if told:
                self.change(new.entry)
            return told

    async def _tell(self, old: ResolvedModel, new: ResolvedModel) -> bool:
        """Lets all workers take over new options, or none."""
        if not new.family.adjusts(old.options, new.options):
            return False
        variants = self._free_variants(new)
        if not await self.residence.adjust(new):
            return False
        self._resolved, self._variants = new, variants
        return True

    def change(self, entry: ModelEntry) -> None:
        """Takes over an entry that needs no reload."""
        self.residence.entry = entry
        self._turn()

    def begin_stop(self) -> None:
        """Takes no new requests from now on."""
        self._draining = True
        self.residence.begin_end(
            NotReady(f"The model {self.name!r} is being removed.", code="draining", retry_after_s=1.0)
        )

    async def stop(self, timeout_s: float) -> None:
        """Takes no new requests, finishes those that run within the time, ends the workers."""
        self.begin_stop()
        await self.residence.end(timeout_s)
