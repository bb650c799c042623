"""Keeps each service at the number of replicas that its load asks for: looks, decides, and says it to the cluster."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import httpx
import msgspec

from sixfold.core.autoscaling.load import ModelLoad, ServerLoad
from sixfold.scaling.autoscale.decide import decide
from sixfold.scaling.autoscale.fleet import Fleet, State
from sixfold.scaling.cluster.engine import ServiceStatus
from sixfold.scaling.spec import ScalingSpec
from sixfold.scaling.up.load import load_between

_LOG = logging.getLogger(__name__)


class Cluster(Protocol):
    """What runs replicas; calls may block and may raise `ClusterError`."""

    def run(self, counts: Mapping[str, int]) -> None:
        """Says how many replicas each model shall have; returns before they do."""
        ...

    def status(self) -> Mapping[str, ServiceStatus]:
        """What is there, by model."""
        ...


class Observer(Protocol):
    """What the gateway sees of the models."""

    def urls(self, model: str) -> Sequence[str]:
        """The addresses of the replicas of a model that take requests."""
        ...

    def num_held(self, model: str) -> int:
        """Requests of a model that wait in front for want of a replica."""
        ...


class Agent:
    """The agent of one cluster. Used in one event loop, which no call of it blocks.

    Args:
        specs: How each model is scaled.
        cluster: Told what to run.
        observer: Asked for what is there.
        clock: Monotonic seconds.
        http: Reaches the replicas; closed by whoever made it.
    """

    def __init__(
        self,
        specs: Mapping[str, ScalingSpec],
        cluster: Cluster,
        observer: Observer,
        *,
        clock: Callable[[], float],
        http: httpx.AsyncClient,
    ) -> None:
        self._specs = specs
        self._cluster = cluster
        self._observer = observer
        self._clock = clock
        self._states: dict[str, State] = {}
        # A service begins with a replica even if it may have none: what it serves is not known before.
        self.counts: dict[str, int] = {model: max(1, spec.min_replicas) for model, spec in specs.items()}
        self._asked: Mapping[str, int] | None = None
        self._seen: dict[str, ServerLoad] = {}
        self._http = http

    def change(self, specs: Mapping[str, ScalingSpec]) -> None:
        """Takes changed models over; the cluster is told at the next step."""
        self._specs = specs
        self._states = {model: state for model, state in self._states.items() if model in specs}
        self.counts = {
            model: min(max(self.counts.get(model, 1), spec.min_replicas), spec.max_replicas)
            for model, spec in specs.items()
        }
        self.tell_again()

    def tell_again(self) -> None:
        """The cluster must be told anew: something else than a number has changed."""
        self._asked = None

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
        for model in self._specs:
            await self._decide(model)
        missing = [model for model, count in self.counts.items() if count and model not in status]
        if missing or self._asked != self.counts:
            counts = dict(self.counts)
            await asyncio.to_thread(self._cluster.run, counts)
            self._asked = counts
        return status

    def _take_over(self, status: Mapping[str, ServiceStatus]) -> None:
        """Before the first word to the cluster: what runs there already stays until its load says otherwise."""
        for model, spec in self._specs.items():
            if model in status and model not in self._states:
                self.counts[model] = min(max(self.counts[model], status[model].num_running), spec.max_replicas)

    async def _decide(self, model: str) -> None:
        loads = await self._loads(model)
        spec = self._specs.get(model)
        if spec is None:  # the file was changed meanwhile
            return
        count = self.counts[model]
        loads = folded(loads, count)
        held = self._observer.num_held(model)
        if not loads and not held and count:
            return  # the first replicas start, or all were lost: either way the number stays
        fleet = Fleet(loads=loads, num_starting=max(0, count - len(loads)), num_held=held)
        now_s = self._clock()
        # What it begins with counts as wanted just now: it stays for the delay even if nothing comes.
        state = self._states.get(model, State(peaks=((now_s, count),)))
        decision = decide(spec, state, fleet, now_s)
        self._states[model] = decision.state
        if decision.num_replicas != count:
            _LOG.info("%s: %d replicas instead of %d: %s", model, decision.num_replicas, count, decision.reason)
            self.counts[model] = decision.num_replicas

    async def _loads(self, model: str) -> tuple[ModelLoad, ...]:
        urls = self._observer.urls(model)
        answers = await asyncio.gather(*(self._load(url) for url in urls))
        found: list[ModelLoad] = []
        for url, after in zip(urls, answers, strict=True):
            if after is None:  # it is up, as the gateway found: only its figure is missing
                found.append(ModelLoad(model_name=model))
                continue
            found.append(load_between(self._seen.get(url), after, model))
            self._seen[url] = after
        return tuple(found)

    async def _load(self, url: str) -> ServerLoad | None:
        try:
            answer = await self._http.get(f"{url}/load")
            return msgspec.json.decode(answer.raise_for_status().content, type=ServerLoad)
        except (httpx.HTTPError, msgspec.MsgspecError) as error:
            _LOG.warning("no load of %s: %s: %s", url, type(error).__name__, error)
            return None


def folded(loads: Sequence[ModelLoad], count: int) -> tuple[ModelLoad, ...]:
    """The loads of no more replicas than were ordered.

    Those beyond that leave, or are a second revision on trial: they are no reason to order more, and their requests count.

    Args:
        loads: One each replica.
        count: Replicas that were ordered.
    """
    if count == 0:
        return ()  # they leave; who waits for a new one is counted in front
    kept = list(loads[:count])
    for i, more in enumerate(loads[count:]):
        one = kept[i % count]
        kept[i % count] = msgspec.structs.replace(
            one,
            num_in_flight=one.num_in_flight + more.num_in_flight,
            num_waiting=one.num_waiting + more.num_waiting,
            queued_units=one.queued_units + more.queued_units,
        )
    return tuple(kept)
