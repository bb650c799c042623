"""A model's way into memory and out of it: who uses it and who waits for it, its loads and its unloads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from sixfold.core.batching.model import DORMANT, ModelInfo
from sixfold.core.config import ModelEntry
from sixfold.core.errors import NotReady, RequestError, SixfoldError, UsageError
from sixfold.core.memory.forecast import Forecast
from sixfold.core.memory.need import HOST, Claim
from sixfold.core.memory.occupancy import Occupancy
from sixfold.core.memory.residency import Phase, Residency
from sixfold.core.registry import ResolvedModel
from sixfold.core.runtime.replica_set import ReplicaSet
from sixfold.core.runtime.report import Report
from sixfold.core.runtime.worker_replica import LoadError

_log = logging.getLogger(__name__)

_FIRST_RETRY_S = 1.0
_MAX_RETRY_S = 60.0
_UNLOAD_TIMEOUT_S = 5.0
"""Nobody uses a model that is unloaded, so its workers have nothing to finish."""


class Residence:
    """One model as a `Tenant` of the memory. Used in the event loop of its host.

    Args:
        entry: Of the model.
        report: Progress of loading.
        residency: Where it asks for memory.
        clock: Monotonic seconds.
        turn: Lets the residency decide anew; called after everything that it may depend on.

    Attributes:
        entry: Set anew by its owner when its terms change.
        settled: Set once the first load has ended in some way, or is not to be.
        error: Why the model can't be loaded as it is, ever.
        info: What the model told about itself when it was loaded last.
        replicas: Its processes while it is in memory, or on its way in or out.
        num_loads: How often it was loaded.
        num_unloads: How often it left, by the reason.
    """

    def __init__(
        self,
        entry: ModelEntry,
        report: Report,
        *,
        residency: Residency,
        clock: Callable[[], float],
        turn: Callable[[], None],
    ) -> None:
        self.entry = entry
        self._report = report
        self._residency = residency
        self._clock = clock
        self._turn = turn
        self._occupancy = Occupancy(clock, self._on_left)
        self._resolved: ResolvedModel | None = None
        self._forecast: Forecast | None = None
        self._work: asyncio.Task[None] | None = None  # a load or an unload
        self._retry_at_s = clock()
        self._retry_s = _FIRST_RETRY_S
        self.phase = Phase.OUT
        self.is_leaving = False
        self.loaded_at_s = clock()
        self.load_s = 0.0
        self.settled = asyncio.Event()
        self.error: str | None = None
        self.info: ModelInfo | None = None
        self.replicas: ReplicaSet | None = None
        self.num_loads = 0
        self.num_unloads = {"idle": 0, "room": 0}
        residency.add(self)

    # What requests do

    def enter(self) -> asyncio.Future[None] | None:
        """See `sixfold.core.serving.directory.HostedModel`."""
        if self.phase is Phase.IN and not self.is_leaving and not self.dormant_devices:
            self._occupancy.enter()
            return None
        wait_s = self._retry_at_s - self._clock()
        if wait_s > 0:
            raise _load_failed(self.name, wait_s)
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

    # What the memory reads: `Tenant`

    @property
    def name(self) -> str:
        """The registry's name."""
        return self.entry.name

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
        assert self.replicas is not None, "what is in memory has processes"
        asleep = [replica.snapshot.metrics.get(DORMANT) == 1.0 for replica in self.replicas.workers]
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
        """What its processes have now, by device; empty while it is out of memory."""
        return {} if self.replicas is None else self.replicas.measured_bytes

    def claims(self, free_bytes: Mapping[str, int]) -> tuple[Claim, ...]:
        """What all replicas take."""
        assert self._forecast is not None, "only resolved models ask for memory"
        return self._forecast.claims(free_bytes, num_replicas=self.entry.replicas)

    # What the memory tells it to do: `Tenant`

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
        """Those who waited may come in."""
        self._occupancy.admit_waiting()

    def refuse(self, reason: str, *, never: bool) -> None:
        """There is no room for it."""
        if never:
            self.fail(f"models.{self.name} does not fit: {reason}. `sixfold plan` shows what would.")
            return
        _log.warning("model %s is not loaded: %s", self.name, reason)
        self.settled.set()
        self._occupancy.refuse_waiting(
            NotReady(
                f"There is no room for the model {self.name!r} beside more important ones. Try again later.",
                code="no_memory",
                retry_after_s=10.0,
            )
        )

    # What its owner does

    def resolve(self, resolved: ResolvedModel, expected: Forecast) -> None:
        """Its files are there, and it is known what it will take: it may be loaded."""
        self._resolved, self._forecast = resolved, expected

    async def adjust(self, new: ResolvedModel) -> bool:
        """Takes over new options, also while it serves; False while it comes or goes.

        Raises:
            ConfigError: A worker can't; all is as before.
        """
        if self.phase is Phase.IN and not self.is_leaving:
            assert self.replicas is not None, "what is in memory has processes"
            self._occupancy.enter()  # it must not go meanwhile
            try:
                await self.replicas.adjust(new)
            finally:
                self._occupancy.leave()
        elif self.phase is not Phase.OUT:
            return False
        self._resolved = new
        return True

    def ask_to_load(self) -> None:
        """Loads it where there is room beside models of its own priority; else it is loaded when it is asked for."""
        self._residency.want(self, spares_equals=True)
        self._turn()

    def fail(self, error: str) -> None:
        """It can't be loaded as it is."""
        _log.error("model %s: %s", self.name, error)
        self.error = error
        self.settled.set()
        self._occupancy.refuse_waiting(
            NotReady(
                f"The model {self.name!r} could not be loaded. Ask the operator; the log says why.", code="model_failed"
            )
        )

    def begin_end(self, reason: RequestError) -> None:
        """Nobody waits for it any more, and what it has of the memory is on its way to others."""
        if self.phase is Phase.IN:
            self.phase = Phase.UNLOADING
        self.settled.set()
        self._occupancy.refuse_waiting(reason)

    async def end(self, timeout_s: float) -> None:
        """After `begin_end`: finishes what runs within the time, ends the processes, gives the memory back."""
        if self._work is not None:
            if self.phase is Phase.LOADING:
                self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        if self.replicas is not None:
            await self.replicas.stop(timeout_s)
        self._residency.remove(self)

    async def _load(self) -> None:
        resolved, expected = self._resolved, self._forecast
        assert resolved is not None and expected is not None
        began_s = self._clock()
        what = f"loading {self.name}"
        self.replicas = ReplicaSet(
            resolved,
            num_replicas=self.entry.replicas,
            device=expected.device,
            parallel=expected.parallel,
            on_progress=lambda fraction: self._report.update_fraction(what, fraction),
        )
        try:
            await self.replicas.start()
        except Exception as error:  # whatever it is, who waits must hear it and the memory is free again
            if not isinstance(error, SixfoldError):
                _log.exception("loading %s failed", self.name)
                error = LoadError(f"models.{self.name}: {type(error).__name__}: {error}")
            self.phase, self.replicas = Phase.OUT, None
            self._residency.gone(self)
            self._on_load_failed(error)
        else:
            self.phase = Phase.IN
            self.num_loads += 1
            self.info = self.replicas.info
            self.loaded_at_s = self._clock()
            self.load_s = self.loaded_at_s - began_s
            self._retry_s = _FIRST_RETRY_S
            self._residency.loaded(self, self.replicas.measured_bytes)
            self._report.update_fraction(what, 1.0)
            self.settled.set()
            self._occupancy.touch()
            self._occupancy.admit_waiting()
        self._turn()

    def _on_load_failed(self, error: SixfoldError) -> None:
        """A mistake of the configuration stays one; what a load on demand lacks now may be there later."""
        if isinstance(error, UsageError) or not self.settled.is_set():
            self.fail(str(error))
            return
        _log.error("model %s: %s", self.name, error)
        self._retry_at_s = self._clock() + self._retry_s
        self._occupancy.refuse_waiting(_load_failed(self.name, self._retry_s))
        self._retry_s = min(2.0 * self._retry_s, _MAX_RETRY_S)

    async def _unload(self) -> None:
        assert self.replicas is not None
        _log.info("model %s is unloaded", self.name)
        await self.replicas.stop(_UNLOAD_TIMEOUT_S)
        self.phase, self.replicas = Phase.OUT, None
        self._residency.gone(self)
        self._turn()


def _load_failed(name: str, retry_after_s: float) -> NotReady:
    return NotReady(
        f"The model {name!r} could not be loaded. Try again soon; the server's log says why.",
        code="load_failed",
        retry_after_s=retry_after_s,
    )
