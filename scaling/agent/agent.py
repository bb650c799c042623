"""A site's agent: it tells the hub what is here, takes plans, and keeps the site within the last one when the hub is gone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from sixfold.core.decisions import DecisionLog
from sixfold.scaling.agent.demand import LocalDemand
from sixfold.scaling.agent.messages import LoadAnswer, LoadReport, ReadyReplica, SiteModel
from sixfold.scaling.agent.reconcile import Action, Held, Slot, Target, reconcile
from sixfold.scaling.agent.standing import StandingFile, take_plan
from sixfold.scaling.hub.messages import ReportAnswer, SiteReport
from sixfold.scaling.hub.model import Assignment, Capacity, Plan, Running

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """What runs replicas at a site: Ray, or processes of one machine. It never holds more than it was told to."""

    def capacities(self) -> tuple[Capacity, ...]:
        """Accelerators that may be used, held or free."""
        ...

    def held(self) -> tuple[Held, ...]:
        """Replicas that hold accelerators now, the stopping ones too."""
        ...

    def act(self, action: Action) -> None:
        """Begins to start or stop replicas; returns at once."""
        ...


class Agent:
    """One site.

    With the hub gone the last plan holds: the number of replicas follows the load between its floors and ceilings. With the hub
    there, its wish is the least, as it counts demand that is on its way here; growth never waits for it.

    Args:
        site_id: The site's name in the hub's configuration.
        region: Where it is, for region locks.
        engine: Runs replicas.
        standing: Keeps the plan over restarts.
        demand: What gateways say.
        clock: Seconds of this process.
        alone_after_s: So long after the last answer of any candidate the site goes by itself.
    """

    def __init__(
        self,
        site_id: str,
        region: str,
        engine: Engine,
        standing: StandingFile,
        demand: LocalDemand,
        *,
        clock: Callable[[], float],
        alone_after_s: float = 30.0,
    ) -> None:
        self.site_id = site_id
        self.region = region
        self._engine = engine
        self._file = standing
        self._demand = demand
        self._clock = clock
        loaded = standing.load()
        self._standing = msgspec.structs.replace(loaded, incarnation=loaded.incarnation + 1)
        # An incarnation that is not on disk could come again after a restart, and reports of the earlier one would seem newer.
        standing.save(self._standing)
        self.decisions = DecisionLog()
        self.num_write_failures = 0
        self._told: dict[Slot, int] = {}
        self._sequence = 0
        self._alone_after_s = alone_after_s
        self._heard_hub_s = clock()

    @property
    def plan(self) -> Plan:
        """The newest plan that the site took; what gateways route by."""
        return self._standing.plan

    @property
    def assignments(self) -> tuple[Assignment, ...]:
        """The site's own part of the last plan that counted it in."""
        return self._standing.assignments

    @property
    def alone(self) -> bool:
        """Whether no candidate of the hub has answered for long."""
        return self._clock() - self._heard_hub_s > self._alone_after_s

    def answered(self, answer: ReportAnswer) -> None:
        """A candidate of the hub answered a report."""
        self._heard_hub_s = self._clock()
        if answer.plan is not None:
            self.offer(answer.plan)

    def offer(self, plan: Plan) -> bool:
        """Takes a plan if it is newer than the one that holds.

        It holds once it is on disk: an agent that forgot it could take an older one after a restart.
        """
        taken = take_plan(self._standing, plan, self.site_id)
        if taken is None:
            return False
        try:
            self._file.save(taken)
        except OSError as error:
            self.num_write_failures += 1
            _log.error("plan %d is not taken, the disk refuses it: %s", plan.epoch, error)
            return False
        self._standing = taken
        _log.info("plan %d of %s holds", plan.epoch, plan.leader_id)
        return True

    def hear(self, report: LoadReport) -> None:
        """Takes a gateway's report."""
        self._demand.hear(report, self._clock())

    def answer(self, report: LoadReport, urls: Mapping[str, Sequence[str]]) -> LoadAnswer:
        """Takes a gateway's report, and tells it what it needs to route by.

        Args:
            report: The gateway's.
            urls: Addresses of the ready replicas, by model.
        """
        self.hear(report)
        now_s = self._clock()
        return LoadAnswer(
            site_id=self.site_id,
            region=self.region,
            plan=self.plan if self.plan.epoch > report.epoch else None,
            replicas=tuple(ReadyReplica(model=model, url=url) for model, own in sorted(urls.items()) for url in own),
            models=tuple(
                SiteModel(
                    model=model,
                    num_ready=len(own),
                    concurrency=self._demand.concurrency(model),
                    num_in_flight=self._demand.num_routed(model, now_s),
                )
                for model, own in sorted(urls.items())
            ),
        )

    def targets(self) -> tuple[Target, ...]:
        """What should run here now: the site's share of the load, within the plan's bounds."""
        now_s = self._clock()
        allowed = [item for item in self.assignments if self.plan.allows(item.model, self.region)]
        found: list[Target] = []
        for model in sorted({item.model for item in allowed}):
            own = [item for item in allowed if item.model == model]
            counts = {item: item.floor if self.alone else item.num_replicas for item in own}
            missing = self._demand.wanted(model, now_s) - sum(counts.values())
            for item in own:
                more = max(0, min(missing, item.ceiling - counts[item]))
                missing -= more
                slot = Slot(item.model, item.accelerator)
                found.append(Target(slot=slot, units=item.units, num_replicas=counts[item] + more))
        return tuple(found)

    def step(self) -> tuple[Action, ...]:
        """One round: what is missing starts, what is too many stops; without any plan nothing does."""
        if self.plan.epoch == 0:  # a new site, or one whose disk was lost: what runs there serves clients
            return ()
        capacity = {item.accelerator: item.num_units for item in self._engine.capacities()}
        targets = self.targets()
        self._tell(targets)
        actions = reconcile(targets, self._engine.held(), capacity)
        for action in actions:
            _log.info("%s on %s: %+d", action.slot.model, action.slot.accelerator, action.num_replicas)
            self._engine.act(action)
        return actions

    def _tell(self, targets: Sequence[Target]) -> None:
        """Records how many replicas the site wants, where that has changed."""
        found = {target.slot: target.num_replicas for target in targets}
        bounds = {Slot(item.model, item.accelerator): item for item in self.assignments}
        for slot in sorted({*found, *self._told}):
            before, after = self._told.get(slot, 0), found.get(slot, 0)
            if before != after:
                item = bounds.get(slot)
                wish = self._demand.wanted(slot.model, self._clock())
                self.decisions.changed(
                    "replicas",
                    before,
                    after,
                    f"requests here keep {wish} busy"
                    + ("" if item is None else f"; plan {self.plan.epoch} wants {item.num_replicas}: {item.reason}")
                    + ("; the hub is not heard" if self.alone else ""),
                    objective="none here"
                    if item is None
                    else f"{item.floor}..{item.ceiling} of plan {self.plan.epoch}",
                    source=f"{slot.model}@{self.site_id}",
                )
        self._told = found

    def report(self) -> SiteReport:
        """What the hub should know; each call is a later report."""
        self._sequence += 1
        return SiteReport(
            site_id=self.site_id,
            incarnation=self._standing.incarnation,
            sequence=self._sequence,
            epoch=self.plan.epoch,
            capacities=self._engine.capacities(),
            running=tuple(
                Running(model=item.slot.model, accelerator=item.slot.accelerator, num_replicas=item.num_active)
                for item in self._engine.held()
                if item.num_active
            ),
            loads=self._demand.loads(self._clock()),
        )

    def admits(self, model: str) -> bool:
        """Whether a request for the model may come here: a replica is ready and the model may be in this region."""
        ready = any(item.num_ready for item in self._engine.held() if item.slot.model == model)
        return ready and self.plan.allows(model, self.region)
