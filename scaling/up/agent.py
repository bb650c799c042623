"""Keeps each service at the number of replicas that its load asks for: looks, decides, and says it to the cluster."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import httpx
import msgspec

from sixfold.core.autoscaling.load import ServerLoad
from sixfold.core.decisions import DecisionLog
from sixfold.scaling.cluster.engine import ServiceStatus
from sixfold.scaling.spec import RolesSpec, ScalingSpec
from sixfold.scaling.up.sizing import Answered, Seen, Sizer, sizer_of

_LOG = logging.getLogger(__name__)


class Cluster(Protocol):
    """What runs replicas; calls may block and may raise `ClusterError`."""

    def run(self, counts: Mapping[str, int]) -> None:
        """Says how many replicas each service shall have; returns before they do."""
        ...

    def status(self) -> Mapping[str, ServiceStatus]:
        """What is there, by service."""
        ...


class Observer(Protocol):
    """What the gateway sees of the services."""

    def urls(self, service: str) -> Sequence[str]:
        """The addresses of the replicas of a service that take requests."""
        ...

    def num_held(self, service: str) -> int:
        """Requests of a service that wait in front for want of a replica."""
        ...


_MAX_ROWS = 256
"""Sequences in a step of a server that nobody has set."""


class Agent:
    """The agent of one cluster. Used in one event loop, which no call of it blocks.

    Args:
        specs: How each model is scaled.
        cluster: Told what to run.
        observer: Asked for what is there.
        clock: Monotonic seconds.
        http: Reaches the replicas; closed by whoever made it.
        decisions: Told of each changed number.
        max_rows: Most sequences in one step of a model's servers, where it is set.

    Attributes:
        counts: Replicas that there shall be, by service.
    """

    def __init__(
        self,
        specs: Mapping[str, ScalingSpec | RolesSpec],
        cluster: Cluster,
        observer: Observer,
        *,
        clock: Callable[[], float],
        http: httpx.AsyncClient,
        decisions: DecisionLog | None = None,
        max_rows: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._cluster = cluster
        self._observer = observer
        self._clock = clock
        self._http = http
        self._decisions = decisions or DecisionLog()
        self._asked: Mapping[str, int] | None = None
        self._num_changes = 0
        self._seen: dict[str, ServerLoad] = {}
        self._decided: set[str] = set()
        self._sizers: dict[str, Sizer] = {}
        self.counts: dict[str, int] = {}
        self.change(specs, max_rows=max_rows)

    def change(
        self, specs: Mapping[str, ScalingSpec | RolesSpec], *, max_rows: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        """Takes changed models over; the cluster is told at the next step."""
        self._sizers = {
            model: sizer_of(model, spec, max_rows=max_rows.get(model, _MAX_ROWS), before=self._sizers.get(model))
            for model, spec in specs.items()
        }
        bounds = {each.name: sizer.bounds(each.name) for sizer in self._sizers.values() for each in sizer.services}
        # A service begins with a replica even if it may have none: what it serves is not known before.
        self.counts = {
            service: min(max(self.counts.get(service, 1), fewest), most) for service, (fewest, most) in bounds.items()
        }
        self._decided &= set(self.counts)
        self.tell_again()

    def tell_again(self) -> None:
        """The cluster must be told anew: something else than a number has changed."""
        self._asked = None
        self._num_changes += 1

    async def step(self) -> Mapping[str, ServiceStatus]:
        """One round: what is missing at the cluster is said again, and what the load asks for is said anew.

        Returns:
            What the cluster runs.

        Raises:
            ClusterError: It does not answer, or refuses. What runs there goes on.
        """
        status = await asyncio.to_thread(self._cluster.status)
        if self._asked is None:
            self._take_over(status)
        for model in tuple(self._sizers):
            await self._decide(model)
        missing = [service for service, count in self.counts.items() if count and service not in status]
        if missing or self._asked != self.counts:
            counts, num_changes = dict(self.counts), self._num_changes
            await asyncio.to_thread(self._cluster.run, counts)
            # What changed while the cluster was told, it may not have been told.
            self._asked = counts if num_changes == self._num_changes else None
        return status

    def _take_over(self, status: Mapping[str, ServiceStatus]) -> None:
        """Before the first word to the cluster: what runs there already stays until its load says otherwise."""
        for sizer in self._sizers.values():
            for service in (each.name for each in sizer.services):
                if service in status and service not in self._decided:
                    most = sizer.bounds(service)[1]
                    self.counts[service] = min(max(self.counts[service], status[service].num_running), most)

    async def _decide(self, model: str) -> None:
        sizer = self._sizers.get(model)
        if sizer is None:  # the file was changed while another model was looked at
            return
        services = [each.name for each in sizer.services]
        answered = {service: await self._answers(service) for service in services}
        sizer = self._sizers.get(model)
        if sizer is None or [each.name for each in sizer.services] != services:  # the file was changed meanwhile
            return
        seen = {
            service: Seen(
                count=self.counts[service], servers=answered[service], num_held=self._observer.num_held(service)
            )
            for service in services
        }
        for service, sized in sizer.resize(seen, self._clock()).items():
            self._decided.add(service)
            count = self.counts[service]
            if sized.num_replicas != count:
                _LOG.info("%s: %d replicas instead of %d: %s", service, sized.num_replicas, count, sized.reason)
                self._decisions.changed(
                    "replicas", count, sized.num_replicas, sized.reason, objective=sized.objective, source=service
                )
                self.counts[service] = sized.num_replicas

    async def _answers(self, service: str) -> tuple[Answered, ...]:
        urls = self._observer.urls(service)
        found = await asyncio.gather(*(self._load(url) for url in urls))
        answers = tuple(Answered(before=self._seen.get(url), now=now) for url, now in zip(urls, found, strict=True))
        self._seen.update({url: now for url, now in zip(urls, found, strict=True) if now is not None})
        return answers

    async def _load(self, url: str) -> ServerLoad | None:
        try:
            answer = await self._http.get(f"{url}/load")
            return msgspec.json.decode(answer.raise_for_status().content, type=ServerLoad)
        except (httpx.HTTPError, msgspec.MsgspecError, ValueError) as error:  # the last of what is no text
            _LOG.warning("no load of %s: %s: %s", url, type(error).__name__, error)
            return None
