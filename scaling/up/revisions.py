"""The revisions of each model on the cluster: the one that serves, and during a rollout the one that shall replace it."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from sixfold.scaling.cluster.document import DeployedService
from sixfold.scaling.cluster.engine import RayEngine, ServiceStatus
from sixfold.scaling.gateway.app import Gateway
from sixfold.scaling.registry import Division
from sixfold.scaling.registry_settings import RegistryPlace
from sixfold.scaling.rollout.decide import Phase, Rollout, Sight, advance
from sixfold.scaling.rollout.split import Split, Splitter
from sixfold.scaling.spec import RolloutSpec
from sixfold.scaling.up.services import deployed
from sixfold.scaling.up.settings import Site

_LOG = logging.getLogger(__name__)

_BROKEN = frozenset(("DEPLOY_FAILED", "UNHEALTHY"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """One model.

    Attributes:
        names: Those that clients use.
        spec: How the next change is rolled out.
        current: What serves.
        next: What shall; None unless there is a rollout.
        rollout: Where that is.
        refused: The revision that was rolled back last: it is not tried again until the file changes.
    """

    names: tuple[str, ...]
    spec: RolloutSpec
    current: DeployedService
    next: DeployedService | None = None
    rollout: Rollout | None = None
    refused: str = ""


class Revisions:
    """All models of one ``sixfold up``; what its agent tells what to run. Owned by one event loop.

    `run` and `status` may be called in a thread: they read the models as one value, which is replaced and never changed.

    Args:
        engine: Reaches the cluster.
        site: The configuration at first.
        gateway: Divides requests, and tells what became of them.
        registry: Where replicas publish themselves.
        replica_key: What they demand.
    """

    def __init__(
        self,
        engine: RayEngine,
        site: Site,
        gateway: Gateway,
        *,
        registry: RegistryPlace,
        replica_key: str | None,
    ) -> None:
        self._engine = engine
        self._gateway = gateway
        self._registry = registry
        self._replica_key = replica_key
        self._has_gpus = engine.num_gpus() > 0
        self._statuses: Mapping[str, ServiceStatus] = engine.status()
        found = {name: self._first(site, name, self._statuses) for name in site.services}
        self._live: Mapping[str, Live] = found

    @property
    def live(self) -> Mapping[str, Live]:
        """By service: a model, or those who compute prompts for it."""
        return self._live

    @property
    def divisions(self) -> Mapping[str, Division]:
        """How requests are divided now, by service; without those that no rollout is about."""
        found: dict[str, Division] = {}
        for service, live in self._live.items():
            splitter = self._gateway.shares.get(live.names[0])
            if live.next is not None and splitter is not None:
                split = splitter.split
                found[service] = Division(
                    service=service, names=live.names, old=split.old, new=split.new, share=split.share
                )
        return found

    def run(self, counts: Mapping[str, int]) -> None:
        """See `sixfold.scaling.up.agent.Cluster`; a revision on trial gets as many replicas as the one that serves."""
        services: list[DeployedService] = []
        for model, live in self._live.items():
            for service in (live.current, live.next):
                if service is not None:
                    # A trial needs someone to try, and someone to compare with, where the service may have none.
                    fewest = 0 if live.next is None else 1
                    services.append(replace(service, num_replicas=max(fewest, counts.get(model, 0))))
        self._engine.apply(services)

    def status(self) -> Mapping[str, ServiceStatus]:
        """See `sixfold.scaling.up.agent.Cluster`: of what serves."""
        self._statuses = statuses = self._engine.status()
        return {
            model: statuses[live.current.application]
            for model, live in self._live.items()
            if live.current.application in statuses
        }

    def change(self, site: Site, now_s: float) -> None:
        """Takes a changed configuration over: what is new is added, what is gone is left out, what is changed is rolled out."""
        self._live = {
            name: self._changed(self._live[name], site, name, now_s)
            if name in self._live
            else self._first(site, name, ())
            for name in site.services
        }

    def roll(self, counts: Mapping[str, int], now_s: float) -> bool:
        """Takes every rollout a step further where it may go; says whether the cluster must be told."""
        before = self._live
        self._live = {model: self._rolled(live, counts.get(model, 0), now_s) for model, live in before.items()}
        return any(before[model].next is not live.next for model, live in self._live.items())

    def _rolled(self, live: Live, num_wanted: int, now_s: float) -> Live:
        if live.next is None or live.rollout is None:
            return live
        new, old = live.next.replicas.revision, live.current.replicas.revision
        fleet = self._gateway.fleet
        status = self._statuses.get(live.next.application)
        sight = Sight(
            num_up=sum(each.up and not each.draining and each.record.revision == new for each in fleet),
            num_wanted=max(1, num_wanted),
            new=fleet.tally(new),
            old=fleet.tally(old),
            broken=status.message or status.state if status is not None and status.state in _BROKEN else None,
        )
        rollout = advance(live.spec, live.rollout, sight, now_s)
        if rollout is live.rollout:
            return live
        _LOG.warning("%s: revision %s: %s: %s", live.current.spec.model, new, rollout.phase, rollout.reason)
        if not rollout.is_over:
            self._share(live, rollout.share(live.spec))
            return replace(live, rollout=rollout)
        self._share(live, None)
        if rollout.phase is Phase.DONE:
            return replace(live, current=live.next, next=None, rollout=None)
        return replace(live, next=None, rollout=None, refused=new)

    def _changed(self, live: Live, site: Site, service: str, now_s: float) -> Live:
        model = site.services[service].model
        spec, names = site.part(model).rollout, site.settings.models[model].names
        live = replace(live, spec=spec, names=names)
        wanted = self._make(site, service, live.current.application)
        revision = wanted.replicas.revision
        if live.next is not None and live.next.replicas.revision == revision:
            return live
        self._share(live, None)
        live = replace(live, next=None, rollout=None)
        if revision == live.refused:
            return live
        if revision == live.current.replicas.revision:
            # Where replicas run is no part of a revision; Ray Serve moves them itself.
            return replace(live, current=replace(live.current, spec=wanted.spec))
        if spec.kind == "rolling":
            return replace(live, current=wanted, refused="")
        live = replace(
            live,
            next=replace(wanted, name=f"{service}-{revision}"),
            rollout=Rollout(since_s=now_s, old=self._gateway.fleet.tally(live.current.replicas.revision)),
            refused="",
        )
        self._share(live, 0.0)
        return live

    def _share(self, live: Live, share: float | None) -> None:
        """Gives the new revision a share of the requests; None ends the division."""
        for name in live.names:
            if share is None or live.next is None:
                self._gateway.shares.pop(name, None)
            elif name in self._gateway.shares:
                self._gateway.shares[name].set_share(share)
            else:
                old, new = live.current.replicas.revision, live.next.replicas.revision
                self._gateway.shares[name] = Splitter(Split(old=old, new=new, share=share))

    def _first(self, site: Site, service: str, running: Collection[str]) -> Live:
        """A service at the start; a cluster that was joined may run it already, under the name of an earlier revision."""
        first = self._make(site, service, service)
        own = f"{service}-{first.replicas.revision}"
        earlier = re.compile(re.escape(service) + "-[0-9a-f]{10}")
        names = [own, service, *sorted(name for name in running if earlier.fullmatch(name))]
        name = next((each for each in names if each in running), service)
        model = site.services[service].model
        return Live(
            names=site.settings.models[model].names, spec=site.part(model).rollout, current=replace(first, name=name)
        )

    def _make(self, site: Site, service: str, name: str) -> DeployedService:
        made = deployed(
            *(site, service), registry=self._registry, replica_key=self._replica_key, has_gpus=self._has_gpus
        )
        return replace(made, name=name)
