"""Chooses the replica of a model that will be done with a new request soonest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sixfold.core.errors import NotReady, QueueFull, RequestError, WorkerDied
from sixfold.core.messages import Request
from sixfold.core.runtime.replica import EventStream, Replica


class ReplicaChooser:
    """Hands requests to replicas: least queued work per drain rate, then fewest requests in flight from here.

    Snapshots are up to 250 ms old, so the requests sent meanwhile are counted here; without that a burst would go to
    one replica.
    """

    def __init__(self) -> None:
        self._in_flight: dict[int, int] = {}

    def submit(
        self, replicas: Sequence[Replica], request: Request[Any], *, back_in_s: float = 1.0
    ) -> tuple[Replica, EventStream]:
        """Admits the request at the best replica that takes it; give the replica to `done` when the request ended.

        Args:
            replicas: Those that take requests now.
            request: The request.
            back_in_s: When to come back if there are none.

        Raises:
            RequestError: No replica takes it: the rejection with the soonest retry.
        """
        rejections: list[RequestError] = []
        for replica in self._by_wait(replicas):
            try:
                stream = replica.submit(request)
            except (QueueFull, NotReady, WorkerDied) as rejection:
                rejections.append(rejection)
                continue
            self._in_flight[id(replica)] = self._in_flight.get(id(replica), 0) + 1
            return replica, stream
        if not rejections:
            raise WorkerDied("The model is being restarted. Try again soon.", retry_after_s=back_in_s)
        raise min(rejections, key=lambda error: float("inf") if error.retry_after_s is None else error.retry_after_s)

    def done(self, replica: Replica) -> None:
        """Counts the end of a request that `submit` gave to this replica."""
        left = self._in_flight[id(replica)] - 1
        if left:
            self._in_flight[id(replica)] = left
        else:
            del self._in_flight[id(replica)]

    def _by_wait(self, replicas: Sequence[Replica]) -> Sequence[Replica]:
        if len(replicas) <= 1:
            return replicas
        snapshots = [replica.snapshot for replica in replicas]
        rates = [snapshot.units_per_s for snapshot in snapshots if snapshot.units_per_s > 0]
        # A replica without a measured rate is taken to be as fast as the others; only ratios matter when none has one.
        typical = sum(rates) / len(rates) if rates else 1.0
        order = sorted(
            range(len(replicas)),
            key=lambda index: (
                snapshots[index].queued_units / (snapshots[index].units_per_s or typical),
                self._in_flight.get(id(replicas[index]), 0),
            ),
        )
        return [replicas[index] for index in order]
