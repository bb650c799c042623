"""The step model of unmodified torch pipelines: merges the parked calls of a step into one forward."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from typing import Any, Generic
from weakref import WeakKeyDictionary

import torch

from sixfold.core.batching.model import InputT, OutputT
from sixfold.core.batching.parked import Parked
from sixfold.core.batching.rendezvous import RendezvousModel
from sixfold.core.batching.step_share import MeasuredStep
from sixfold.core.messages import Cost, Request
from sixfold.core.parallel.leader import Leader
from sixfold.core.rendezvous.adapters import AdapterSwitch
from sixfold.core.rendezvous.calls import CallOwner, ModuleCall
from sixfold.core.rendezvous.comparison import Comparison, allowed_difference, max_difference
from sixfold.core.rendezvous.graphs import RowGraphs
from sixfold.core.rendezvous.memory import free_memory, is_out_of_memory
from sixfold.core.rendezvous.merge import join, merge, row_parts, split
from sixfold.core.rendezvous.row_cache import RowCache, RowGroup
from sixfold.core.rendezvous.streams import MAX_THREAD_STREAMS, Pace, ThreadStreams, current_stream, hand_over, wait_for
from sixfold.core.runtime.devices import use_device

_log = logging.getLogger(__name__)

# Rounding is measured on one call's rows; others may come out so many times worse.
_SPREAD = 3.0

# A module that rounds worse than so (as a share of the largest value) is not trusted to be told from one that mixes rows.
_MAX_ROUGHNESS = 0.2

# How often a forward is timed for the budget, after one that is not.
_MEASURED_TIMES = 3
_MAX_MEASURED = 16  # calls; from there on the last slope goes on


class TorchPipelineModel(RendezvousModel[ModuleCall, Any, InputT, OutputT], Generic[InputT, OutputT]):
    """Its sequences are running pipelines of torch modules; a subclass runs them.

    The first merged forward of each kind of call is checked against the calls alone. A module whose rows depend on each
    other never merges again, and its results are right all the same.

    Args:
        device: Where the modules are.
        caches: Row caches, by the identity of their module.
        max_cache_bytes: What caches of all sequences may hold; sequences that want one wait beyond it.
        switches: Of the adapters of modules, by the identity of the module.
        graphs: Recorded forwards; None computes all.
        parallel: The other ranks, if modules are shared with them; their calls then have no caches, adapters or graphs.
    """

    def __init__(
        self,
        device: torch.device,
        caches: Mapping[int, RowCache] | None = None,
        max_cache_bytes: int = 1 << 62,
        switches: Mapping[int, AdapterSwitch] | None = None,
        graphs: RowGraphs | None = None,
        parallel: Leader | None = None,
    ) -> None:
        super().__init__(max_kept_threads=MAX_THREAD_STREAMS if device.type == "cuda" else 0)
        self._graphs = graphs
        self._parallel = parallel
        self._comparison: Comparison | None = None
        self._max_cache_bytes = max_cache_bytes
        self._owners: WeakKeyDictionary[Parked[ModuleCall, Any], CallOwner] = WeakKeyDictionary()
        self._cache_users: set[CallOwner] = set()
        self._bytes_per_user = 0
        self._device = device
        self._caches = dict(caches or {})
        self._switches = dict(switches or {})
        self._merges: dict[Hashable, bool] = {}  # by kind of call: whether merging is right
        self._measured: list[MeasuredStep] = []
        self._pace = Pace(device)
        self._streams = ThreadStreams(device)
        self.num_forwards = 0
        self.num_calls = 0
        self.num_rows = 0

    def measured_steps(self) -> Sequence[MeasuredStep]:
        """What `measure_company` has timed."""
        return tuple(self._measured)

    @torch.no_grad()
    def measure_company(self, call: ModuleCall, *, max_units: int, max_seconds: float) -> None:
        """Times forwards of 1, 2, 4, ... calls of this form, for the budget; part of a warm-up.

        Ends where the memory or the given units or seconds do, or where twice the calls take twice as long twice: from
        there on the slope is known. Over ranks nothing is timed: memory that ends in one rank alone would part them.
        """
        if max_seconds <= 0 or self._parallel is not None:
            return
        num_forwards, began_s = self.num_forwards, time.monotonic()
        if self._graphs is not None:
            self._graphs.records_at_once = True
        count, num_linear, before_s = 1, 0, 0.0
        while count <= _MAX_MEASURED and count * call.units <= max_units and num_linear < 2:
            try:
                times = [self._timed([call] * count) for _ in range(_MEASURED_TIMES + 1)][1:]
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                free_memory(error, self._device)
                break
            units = count * call.units
            self._measured += [MeasuredStep(batch_key=call.key, units=units, seconds=each) for each in times]
            num_linear = num_linear + 1 if min(times) > 1.9 * before_s > 0.0 else 0
            before_s = min(times)
            # the next takes at most twice as long as this one
            if time.monotonic() - began_s + 2 * (_MEASURED_TIMES + 1) * before_s > max_seconds:
                break
            count *= 2
        self.num_forwards = num_forwards
        if self._graphs is not None:
            self._graphs.records_at_once = False

    def _timed(self, calls: Sequence[ModuleCall]) -> float:
        wait_for(self._device)
        began_s = time.monotonic()
        self._together(calls)
        wait_for(self._device)
        return time.monotonic() - began_s

    @property
    def merges_rightly(self) -> Mapping[Hashable, bool]:
        """Of each kind of call that was merged, whether the merged forward gave what the calls give alone."""
        return self._merges

    @property
    def cache_bytes(self) -> int:
        """What the row caches hold."""
        return sum(cache.num_bytes for cache in self._caches.values())

    def begin_thread(self) -> None:
        """See `RendezvousModel`: what a pipeline computes by itself is on its model's GPU, in a stream of its thread.

        A pipeline waits for the device several times before its first step (token ids and noise are copied from unpinned
        memory), and in the steps' stream each time for the steps of others that are in the queue.
        """
        use_device(str(self._device))
        self._streams.use()

    def prepare(self, request: Request[InputT], piece: object) -> Sequence[Parked[ModuleCall, Any]]:
        """Starts the pipeline and runs it up to its first call."""
        prepared = super().prepare(request, piece)
        for sequence in prepared:
            if sequence.call is not None and sequence.call.owner is not None:
                self._owners[sequence] = sequence.call.owner
        return prepared

    def reserve(self, sequence: Parked[ModuleCall, Any], units: int) -> int:
        """Room for its cache; a sequence has it to its end, so nothing is ever preempted."""
        owner = self._owners.get(sequence)
        if owner is None or owner.cache_threshold is None or owner in self._cache_users:
            return units
        num_others = len(self._cache_users)
        if num_others and (num_others + 1) * self._bytes_per_user > self._max_cache_bytes:
            return 0
        self._cache_users.add(owner)
        return units

    def call_cost(self, call: ModuleCall) -> Cost:
        """Calls are indivisible."""
        kind = (call.key, id(call)) if self._merges.get(_kind(call)) is False else call.key
        return Cost(units=call.units, min_units=call.units, batch_key=kind)

    @torch.no_grad()
    def forward(self, calls: Sequence[ModuleCall]) -> Sequence[Any]:
        """One forward for all rows.

        Raises:
            OutOfMemory: Freed already; the core tries the halves.
        """
        try:
            self._pace.wait()
            own = current_stream(self._device)
            for call in calls:
                hand_over(call.arguments, source=call.stream, target=own)
            answers = self._checked(calls) if len(calls) > 1 else self._together(calls)
            for call, answer in zip(calls, answers, strict=True):
                hand_over(answer, source=own, target=call.stream)
            self._pace.mark()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = free_memory(error, self._device)
        else:
            self.num_calls += len(calls)
            self.num_rows += sum(call.rows for call in calls)
            return answers
        raise failure

    def _checked(self, calls: Sequence[ModuleCall]) -> Sequence[Any]:
        kind = _kind(calls[0])
        right = self._merges.get(kind)
        if right is None and not any(self._caching(call) for call in calls):
            alone = [self._together([call])[0] for call in calls]
            try:
                difference = max_difference(alone, self._together(calls))
                if difference > 1.0:
                    difference /= self._roughness(calls[0], alone[0], len(calls))
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                _log.warning("%s can't run calls together: %s", _name(calls[0]), error)
                difference = float("inf")
            self._merges[kind] = difference <= 1.0
            if difference > 1.0:
                _log.warning(
                    "%s gives other results for calls together (%.1e of what rounding may do): it runs them alone from "
                    "now on, which is right but slower. Please report this model.",
                    _name(calls[0]),
                    difference,
                )
            return alone
        if right is False:
            return [self._together([call])[0] for call in calls]
        return self._together(calls)

    def _roughness(self, call: ModuleCall, alone: Any, num_calls: int) -> float:
        """What rounding does to this module at so many rows, as a multiple of what is taken for granted; at least 1.

        Rows that are all equal can't tell whether a module mixes them: what differs then is rounding, by kernels that are
        chosen by shape. Deep modules with random weights in bfloat16 come to more than is taken for granted.
        """
        found = max_difference([alone] * num_calls, self._together([call] * num_calls))
        return min(max(1.0, _SPREAD * found), _MAX_ROUGHNESS / allowed_difference(alone))

    def _together(self, calls: Sequence[ModuleCall]) -> list[Any]:
        self.num_forwards += 1
        function: Callable[..., Any] = calls[0].function
        switch = self._switches.get(id(function))
        with contextlib.nullcontext() if switch is None else switch.using(calls[0].adapters):  # equal: of one key
            return self._cached(function, calls)

    def _cached(self, function: Callable[..., Any], calls: Sequence[ModuleCall]) -> list[Any]:
        cache = self._caches.get(id(function))
        if self._graphs is not None and not any(self._caching(call) for call in calls):
            answers = self._graphs.run(calls, pads=len(calls) > 1 and self._merges.get(_kind(calls[0]), False))
            if answers is not None:
                return answers
        if cache is None:
            return split(self._run(function, calls), calls)
        groups = [
            RowGroup(owner=call.owner, context=call.context, rows=call.rows, threshold=_threshold(call))
            for call in calls
        ]
        with cache.running(groups):
            answers = split(function(**merge(calls)), calls)
        if self._cache_users:
            self._bytes_per_user = max(self._bytes_per_user, self.cache_bytes // len(self._cache_users))
        return answers

    def _run(self, function: Callable[..., Any], calls: Sequence[ModuleCall]) -> Any:
        """The forward, over the ranks if the module is shared with them."""
        arguments = merge(calls)
        if self._parallel is None or not self._parallel.shares(function):
            return function(**arguments)
        parts = row_parts(arguments, calls[0], self._parallel.num_row_groups)
        answer = join(self._parallel.run(function, parts))
        if self._comparison is not None:
            self._comparison.add(function(**arguments), answer)
        return answer

    @contextlib.contextmanager
    def comparing_ranks(self) -> Generator[None]:
        """Forwards inside are computed in this process as well; a difference refuses the model. For `warm_up`.

        Raises:
            ConfigError: The ranks give another result than one process.
        """
        if self._parallel is None:
            yield
            return
        self._comparison = Comparison(str(self._parallel.degrees))
        try:
            yield
            self._comparison.check()
        finally:
            self._comparison = None

    def _caching(self, call: ModuleCall) -> bool:
        return id(call.function) in self._caches and _threshold(call) is not None

    def release(self, sequence: Parked[ModuleCall, Any]) -> None:
        """Ends the pipeline and drops what was cached for it."""
        super().release(sequence)
        owner = self._owners.pop(sequence, None)
        if owner in self._cache_users:
            self._cache_users.discard(owner)
            for cache in self._caches.values():
                cache.forget(owner)


def _threshold(call: ModuleCall) -> float | None:
    return None if call.owner is None else call.owner.cache_threshold


def _kind(call: ModuleCall) -> Hashable:
    """The module and which arguments the call has."""
    return (id(call.function), tuple(sorted(name for name, value in call.arguments.items() if value is not None)))


def _name(call: ModuleCall) -> str:
    return type(call.function).__name__
