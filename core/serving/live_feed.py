"""What one who watches the server is told: the batch of every replica, its figures, and who has the memory.

Nothing here holds a text of a client. A key is shown the models that it may use, and the ids of its own requests.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from time import monotonic

import msgspec

from sixfold.core.batching.step_watch import Joined, Left, StepNews, Stepped
from sixfold.core.family import MetricKind
from sixfold.core.memory.ledger import MemoryLedger
from sixfold.core.runtime.replica import BatchNews, Replica, WatchedReplica
from sixfold.core.serving.context import ServingContext
from sixfold.core.serving.directory import HostedModel
from sixfold.core.serving.keys import Principal
from sixfold.core.serving.live_messages import (
    LiveDevice,
    LiveHolding,
    LiveMessage,
    LiveModel,
    LiveNews,
    LiveReplica,
    SequenceJoined,
    SequenceLeft,
    StepDone,
)
from sixfold.core.serving.replica_metrics import MANAGER_METRICS
from sixfold.core.serving.sse import event_frame

_EVERY_S = 0.25
_MAX_NEWS = 8192
_OTHERS = "other models"


@dataclass(slots=True)
class _Watched:
    """A replica that is being watched, and what it told since the last message."""

    number: int
    stop: Callable[[], None]
    news: deque[StepNews] = field(default_factory=lambda: deque[StepNews](maxlen=_MAX_NEWS))
    num_dropped_there: int = 0
    num_dropped_here: int = 0

    def take(self, batch: BatchNews) -> None:
        self.num_dropped_there = batch.num_dropped
        room = _MAX_NEWS - len(self.news)
        self.num_dropped_here += max(0, len(batch.news) - room)
        self.news.extend(batch.news)


class LiveFeed:
    """The feed of one connection. Used by one task of the event loop; `close` ends what it has begun at the replicas.

    Args:
        context: The server's parts.
        principal: Who watches.
        ledger: The account of memory; None where nobody keeps one.
    """

    def __init__(self, context: ServingContext, principal: Principal, ledger: MemoryLedger | None) -> None:
        self._context = context
        self._principal = principal
        self._ledger = ledger
        self._watched: dict[Replica, _Watched] = {}
        self._numbers = itertools.count(1)

    async def frames(self) -> AsyncIterator[bytes]:
        """A message at once and then four a second, until the server drains."""
        try:
            while not (self._context.drain.begun or self._context.directory.draining):
                self._follow_replicas()
                yield event_frame("live", msgspec.json.encode(self.message()))
                await asyncio.sleep(_EVERY_S)
        finally:
            self.close()

    def message(self) -> LiveMessage:
        """This moment, and what happened since the last message."""
        return LiveMessage(
            at_s=monotonic(), models=tuple(self._model(model) for model in self._models()), memory=tuple(self._memory())
        )

    def close(self) -> None:
        """Watches nothing any more."""
        watched, self._watched = self._watched, {}
        for each in watched.values():
            each.stop()

    def _models(self) -> Iterator[HostedModel]:
        for model in self._context.directory.models():
            if any(self._principal.may_use(name, model.name) for name in (model.name, *model.aliases, *model.variants)):
                yield model

    def _follow_replicas(self) -> None:
        """Watches the replicas that there are now: they come and go with models and workers."""
        present = {replica for model in self._models() for replica in model.replicas}
        for replica in [replica for replica in self._watched if replica not in present]:
            self._watched.pop(replica).stop()
        for replica in present:
            if replica not in self._watched and isinstance(replica, WatchedReplica):
                watched = self._watched[replica] = _Watched(number=next(self._numbers), stop=lambda: None)
                watched.stop = replica.watch(watched.take)

    def _model(self, model: HostedModel) -> LiveModel:
        counted = dict(self._context.metrics.models()).get(model.name)
        return LiveModel(
            name=model.name,
            modality=model.family.modality if model.family else None,
            state=model.state.value,
            num_in_flight=counted.num_in_flight if counted is not None else 0,
            replicas=tuple(self._replica(model, index, replica) for index, replica in enumerate(model.replicas)),
        )

    def _replica(self, model: HostedModel, index: int, replica: Replica) -> LiveReplica:
        snapshot, watched = replica.snapshot, self._watched.get(replica)
        events: tuple[LiveNews, ...] = ()
        num_dropped = 0
        if watched is not None:
            events = tuple(self._shown(event) for event in watched.news)
            watched.news.clear()
            num_dropped = watched.num_dropped_there + watched.num_dropped_here
        return LiveReplica(
            replica=index,
            num_running=snapshot.num_running,
            num_waiting=snapshot.num_waiting,
            queued_units=snapshot.queued_units,
            units_per_s=snapshot.units_per_s,
            metrics=_declared_values(model, snapshot.metrics),
            events=events,
            num_dropped=num_dropped,
            watch=0 if watched is None else watched.number,
        )

    def _shown(self, event: StepNews) -> LiveNews:
        if isinstance(event, Joined):
            is_own = event.tenant == self._principal.name
            return SequenceJoined(
                sequence=event.sequence,
                request=event.request,
                # The client's own id, without what makes it unique inside.
                request_id=event.request_id.rpartition("/")[0] or event.request_id if is_own else None,
                units=event.units,
                waited_s=event.waited_s,
            )
        if isinstance(event, Left):
            return SequenceLeft(sequence=event.sequence, step=event.step, reason=event.reason)
        return StepDone(**{name: getattr(event, name) for name in Stepped.__struct_fields__})

    def _memory(self) -> Iterator[LiveDevice]:
        ledger = self._ledger
        if ledger is None:
            return
        free = ledger.free()
        hidden = {model.name for model in self._context.directory.models()} - {model.name for model in self._models()}
        for device, capacity in ledger.capacities.items():
            holdings: dict[str, LiveHolding] = {}
            for holding in ledger.holdings:
                holder = _OTHERS if holding.holder in hidden else holding.holder
                before = holdings[holder].num_bytes if holder in holdings else 0
                rests = device in holding.resting
                holdings[holder] = LiveHolding(holder=holder, num_bytes=before + holding.on(device), rests=rests)
            yield LiveDevice(
                device=device, capacity_bytes=capacity, free_bytes=free[device], holdings=tuple(holdings.values())
            )


def _declared_values(model: HostedModel, values: Mapping[str, float]) -> dict[str, float]:
    """What the manager and the family promise to report, without histograms."""
    own = model.family.metrics if model.family is not None else ()
    names = [spec.name for spec in (*MANAGER_METRICS, *own) if spec.kind is not MetricKind.HISTOGRAM]
    return {name: values[name] for name in names if name in values}
