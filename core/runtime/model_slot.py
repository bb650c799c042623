"""One model of a running server: resolved once, then in memory or out of it as requests and its neighbours ask for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sixfold.core.batching.model import DORMANT, ModelInfo
from sixfold.core.config import ModelEntry
from sixfold.core.errors import NotReady, SixfoldError, UsageError
from sixfold.core.family import Family
from sixfold.core.memory.forecast import Forecast, forecast
from sixfold.core.memory.machine import Machine
from sixfold.core.memory.need import HOST, Claim
from sixfold.core.memory.occupancy import Occupancy
from sixfold.core.memory.residency import Phase, Residency
from sixfold.core.plugins import Plugins
from sixfold.core.registry import ResolvedModel, resolve_entry
from sixfold.core.runtime.replica_set import ReplicaSet
from sixfold.core.runtime.report import Report
from sixfold.core.runtime.worker_replica import WorkerReplica
from sixfold.core.serving.directory import ModelState

_log = logging.getLogger(__name__)

_FIRST_RETRY_S = 1.0
_MAX_RETRY_S = 60.0
_UNLOAD_TIMEOUT_S = 5.0
"""Nobody uses a model that is unloaded, so its workers have nothing to finish."""


class ModelSlot:
    """One entry of the registry while it is hosted: a `HostedModel`, and a `Tenant` of the memory.

    Args:
        entry: The entry.
        plugins: For resolving it.
        cache_dir: Where its files are kept.
        report: Progress of fetching and loading.
        machine: The devices.
        residency: Where it asks for memory.
        clock: Monotonic seconds.
        turn: Lets the residency decide anew; called after everything that it may depend on.
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
    ) -> None:
        self.entry = entry
        self._plugins = plugins
        self._cache_dir = cache_dir
        self._report = report
        self._machine = machine
        self._residency = residency
        self._clock = clock
        self._turn = turn
        self._resolved: ResolvedModel | None = None
        self._forecast: Forecast | None = None
        self._replicas: ReplicaSet | None = None
        self._info: ModelInfo | None = None
        self._occupancy = Occupancy(clock, self._on_left)
        self._settled = asyncio.Event()  # the first load has ended in some way, or is not to be
        self._work: asyncio.Task[None] | None = None  # a load or an unload
        self._created_s = int(time.time())
        self._stopped_as: ModelState | None = None
        self._retry_at_s = clock()
        self._retry_s = _FIRST_RETRY_S
        self.error: str | None = None
        self.phase = Phase.OUT
        self.is_leaving = False
        self.loaded_at_s = clock()
        self.load_s = 0.0
        self.num_loads = 0
        self.num_unloads = {"idle": 0, "room": 0}

    # What the HTTP face reads: `HostedModel`

    @property
    def name(self) -> str:
        """The registry's name."""
        return self.entry.name

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names that clients may use."""
        return self.entry.aliases

    @property
    def family(self) -> Family | None:
        """The family that serves it; None until its files told, when the entry names none."""
        if self._resolved is not None:
            return self._resolved.family
        return self._plugins.families.get(self.entry.family or "")

    @property
    def state(self) -> ModelState:
        """Where it is in its life."""
        if self._stopped_as is not None:
            return self._stopped_as
        if not self._settled.is_set() or self.phase is Phase.LOADING:
            return ModelState.LOADING
        return ModelState.READY if self.phase is Phase.IN else ModelState.UNLOADED

    @property
    def loads_on_demand(self) -> bool:
        """See `HostedModel`."""
        return self._settled.is_set() and self._stopped_as is None

    @property
    def info(self) -> ModelInfo | None:
        """What the model told about itself when it was loaded last."""
        return self._info

    @property
    def replicas(self) -> Sequence[WorkerReplica]:
        """Those that take requests now."""
        return () if self._replicas is None else self._replicas.workers

    @property
    def replaced(self) -> asyncio.Event:
        """Set when the next worker has taken another's place."""
        assert self._replicas is not None, "only loaded models have workers"
        return self._replicas.replaced

    @property
    def created_s(self) -> int:
        """Unix time at which the entry came."""
        return self._created_s

    def enter(self) -> asyncio.Future[None] | None:
        """See `HostedModel`."""
        if self.phase is Phase.IN and not self.is_leaving and not self.dormant_devices:
            self._occupancy.enter()
            return None
        wait_s = self._retry_at_s - self._clock()
        if wait_s > 0:
            raise NotReady(
                f"The model {self.name!r} could not be loaded a moment ago. Try again soon.",
                code="load_failed",
                retry_after_s=wait_s,
            )
        place = self._occupancy.wait()
        if self.phase is not Phase.LOADING:
            self._residency.want(self)
            self._turn()
        return place

    def leave(self) -> None:
        """A user has gone."""
        self._occupancy.leave()

    def _on_left(self) -> None:
        if self._residency.has_wishes or self.is_leaving or self.idle_unload_s is not None:
            self._turn()

    # What the memory reads and does: `Tenant`

    @property
    def priority(self) -> int:
        """The entry's."""
        return self.entry.priority

    @property
    def idle_unload_s(self) -> float | None:
        """The entry's."""
        return self.entry.idle_unload_s

    @property
    def dormant_devices(self) -> frozenset[str]:
        """Its GPU, while its engine sleeps. Figures of a worker are 100 ms old, so a model in use counts as awake."""
        if self.num_users or self.phase is not Phase.IN or self._forecast is None or self._forecast.device == HOST:
            return frozenset()
        asleep = [replica.snapshot.metrics.get(DORMANT) == 1.0 for replica in self.replicas]
        return frozenset({self._forecast.device}) if asleep and all(asleep) else frozenset()

    @property
    def num_users(self) -> int:
        """Requests that use it."""
        return self._occupancy.num_users

    @property
    def num_waiting(self) -> int:
        """Requests that wait until it is loaded."""
        return self._occupancy.num_waiting

    @property
    def idle_since_s(self) -> float:
        """When the last user left."""
        return self._occupancy.idle_since_s

    @property
    def measured_bytes(self) -> Mapping[str, int]:
        """What its workers have now, by device; empty while it is out of memory."""
        return {} if self._replicas is None else self._replicas.measured_bytes

    def claims(self, free_bytes: Mapping[str, int]) -> tuple[Claim, ...]:
        """What all replicas take."""
        assert self._forecast is not None, "only resolved models ask for memory"
        device = self._forecast.device
        return self._forecast.need.claims(device, free_bytes.get(device, 0), num_replicas=self.entry.replicas)

    def begin_load(self) -> None:
        """Its memory is claimed."""
        self.phase = Phase.LOADING
        self._work = asyncio.create_task(self._load())

    def begin_unload(self) -> None:
        """Nobody uses it."""
        self.num_unloads["room" if self.is_leaving else "idle"] += 1
        self.phase = Phase.UNLOADING
        self.is_leaving = False
        self._work = asyncio.create_task(self._unload())

    def stay(self) -> None:
        """Those who waited while others left may come in."""
        self._occupancy.admit_waiting()

    def refuse(self, reason: str, *, never: bool) -> None:
        """There is no room for it."""
        _log.warning("model %s is not loaded: %s", self.name, reason)
        if never:
            self._fail(f"models.{self.name} does not fit: {reason}. `sixfold plan` shows what would.")
            return
        self._settled.set()
        self._occupancy.refuse_waiting(
            NotReady(
                f"There is no room for the model {self.name!r} beside more important ones. Try again later.",
                code="no_memory",
                retry_after_s=10.0,
            )
        )

    # The work

    async def bring_up(self) -> None:
        """Fetches its files and, unless it loads on demand, loads it; returns when it has settled, maybe with ``error``."""
        try:
            self._resolved = await asyncio.to_thread(
                resolve_entry, self.entry, self._plugins, self._cache_dir, self._report.update
            )
            self._forecast = await asyncio.to_thread(forecast, self._resolved, self._machine)
        except SixfoldError as error:
            self._fail(str(error))
            return
        if self._stopped_as is not None:
            return
        if self.entry.load == "on_demand":
            self._settled.set()
            return
        self.ask_to_load()
        await self._settled.wait()

    def ask_to_load(self) -> None:
        """Loads it where there is room beside models of its own priority; else it is loaded when it is asked for."""
        self._residency.want(self, spares_equals=True)
        self._turn()

    async def _load(self) -> None:
        resolved, expected = self._resolved, self._forecast
        assert resolved is not None and expected is not None
        began_s = self._clock()
        what = f"loading {self.name}"
        self._replicas = ReplicaSet(
            resolved,
            num_replicas=self.entry.replicas,
            device=expected.device,
            on_progress=lambda fraction: self._report.update_fraction(what, fraction),
        )
        try:
            await self._replicas.start()
        except SixfoldError as error:
            self.phase, self._replicas = Phase.OUT, None
            self._residency.gone(self)
            self._on_load_failed(error)
        else:
            self.phase = Phase.IN
            self.num_loads += 1
            self._info = self._replicas.info
            self.loaded_at_s = self._clock()
            self.load_s = self.loaded_at_s - began_s
            self._retry_s = _FIRST_RETRY_S
            self._residency.loaded(self, self._replicas.measured_bytes)
            self._report.update_fraction(what, 1.0)
            self._settled.set()
            self._occupancy.touch()
            self._occupancy.admit_waiting()
        self._turn()

    def _on_load_failed(self, error: SixfoldError) -> None:
        """A mistake of the configuration stays one; what a load on demand lacks now may be there later."""
        if isinstance(error, UsageError) or not self._settled.is_set():
            self._fail(str(error))
            return
        _log.error("model %s: %s", self.name, error)
        self._retry_at_s = self._clock() + self._retry_s
        self._occupancy.refuse_waiting(
            NotReady(
                f"The model {self.name!r} could not be loaded. Try again soon; the server's log says why.",
                code="load_failed",
                retry_after_s=self._retry_s,
            )
        )
        self._retry_s = min(2.0 * self._retry_s, _MAX_RETRY_S)

    async def _unload(self) -> None:
        assert self._replicas is not None
        _log.info("model %s is unloaded", self.name)
        await self._replicas.stop(_UNLOAD_TIMEOUT_S)
        self.phase, self._replicas = Phase.OUT, None
        self._residency.gone(self)
        self._turn()

    def _fail(self, error: str) -> None:
        _log.error("model %s: %s", self.name, error)
        self.error = error
        self._stopped_as = ModelState.FAILED
        self._settled.set()
        self._occupancy.refuse_waiting(
            NotReady(
                f"The model {self.name!r} could not be loaded. Ask the operator; the log says why.", code="model_failed"
            )
        )

    def change(self, entry: ModelEntry) -> None:
        """Takes over an entry that needs no reload."""
        self.entry = entry
        self._turn()

    def begin_stop(self) -> None:
        """Takes no new requests from now on; what it has of the memory is on its way to others."""
        if self._stopped_as is None:
            self._stopped_as = ModelState.DRAINING
        if self.phase is Phase.IN:
            self.phase = Phase.UNLOADING
        self._settled.set()
        self._occupancy.refuse_waiting(
            NotReady(f"The model {self.name!r} is being removed.", code="draining", retry_after_s=1.0)
        )

    async def stop(self, timeout_s: float) -> None:
        """Takes no new requests, finishes those that run within the time, ends the workers."""
        self.begin_stop()
        if self._work is not None:
            if self.phase is Phase.LOADING:
                self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        if self._replicas is not None:
            await self._replicas.stop(timeout_s)
        self._residency.remove(self)
