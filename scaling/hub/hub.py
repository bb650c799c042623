"""One candidate of the hub: hears sites, answers with the newest plan, and plans while it leads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from sixfold.core.decisions import DecisionLog
from sixfold.scaling.hub.fleet import FleetSettings, FleetView
from sixfold.scaling.hub.leader import Leadership
from sixfold.scaling.hub.messages import ReportAnswer, SiteReport
from sixfold.scaling.hub.model import Assignment, Plan, Snapshot
from sixfold.scaling.hub.store import ABSENT, Conflict, Fence, Fenced, Store, StoreError, StoreUnavailable

PLAN_KEY = "plan"

Optimize = Callable[[Snapshot], Awaitable[Plan]]

_log = logging.getLogger(__name__)


class Hub:
    """One candidate. The plan in the store is the truth; what a candidate holds is a copy that may be old.

    Args:
        hub_id: Its name, unique among the candidates.
        store: Where candidates meet.
        fleet: What the operator says.
        optimize: Turns a snapshot into a plan; must not block the event loop.
        clock: Seconds of this process.
        ttl_s: How long the others wait for a leader that says nothing.
        plan_every_s: Time between two plans.
    """

    def __init__(
        self,
        hub_id: str,
        store: Store,
        fleet: FleetSettings,
        optimize: Optimize,
        *,
        clock: Callable[[], float],
        ttl_s: float = 6.0,
        plan_every_s: float = 10.0,
    ) -> None:
        self.hub_id = hub_id
        self.plan: Plan | None = None
        self._version = ABSENT
        self._store = store
        self._fleet = fleet
        self._view = FleetView(fleet, clock())
        self._optimize = optimize
        self._clock = clock
        self._leadership = Leadership(store, hub_id, ttl_s=ttl_s, clock=clock)
        self._step_s = ttl_s / 3
        self._plan_every_s = plan_every_s
        self._planned_s: float | None = None
        self.num_plans = 0
        self.decisions = DecisionLog()

    @property
    def leads(self) -> bool:
        """Whether it leads, in its own opinion."""
        return self._leadership.fence is not None

    def site_states(self) -> dict[str, str]:
        """The state of every site, as this candidate hears it."""
        return {site.site_id: self._view.state(site.site_id, self._clock()) for site in self._fleet.sites}

    def hear(self, report: SiteReport) -> ReportAnswer:
        """Takes a site's report; every candidate answers, whether it leads or not."""
        self._view.hear(report, self._clock())
        newer = self.plan is not None and self.plan.epoch > report.epoch
        return ReportAnswer(plan=self.plan if newer else None)

    async def run(self) -> None:
        """Steps until it is cancelled; then gives the lead away."""
        try:
            while True:
                try:
                    await self.step()
                except Exception:  # a mistake of ours in one plan must not end the hub: the next one sees another fleet
                    _log.exception("this round of the hub failed")
                await asyncio.sleep(self._step_s)
        finally:
            try:
                await asyncio.shield(self._leadership.resign())
            except StoreError:
                _log.info("the lead is not given away, it ends with its lease")

    async def step(self) -> None:
        """One round: the store's plan, the lead, and a plan if one is due."""
        try:
            self._view.observe(self._clock())
            await self._refresh()
            fence = await self._leadership.step(eligible=self._view.hears_enough(self.plan, self._clock()))
            if fence is not None and self._due():
                await self._refresh()  # the plan that this one follows; read after the lead was won, so none is missed
                await self._publish(fence)
        except Fenced:
            self._leadership.fenced()
        except Conflict:
            _log.warning("the plan was written by another; it is read again")
        except StoreUnavailable as error:
            _log.warning("%s", error)

    def _due(self) -> bool:
        return self._planned_s is None or self._clock() - self._planned_s >= self._plan_every_s

    async def _refresh(self) -> None:
        stored = await self._store.get(PLAN_KEY)
        if stored is None:
            self._version = ABSENT  # the store was lost: the next plan is written where there is none
        elif stored.version != self._version:
            plan = msgspec.json.decode(stored.value, type=Plan)
            if self.plan is None:
                self._view.remember(plan, self._clock())
            self.plan, self._version = plan, stored.version

    async def _publish(self, fence: Fence) -> None:
        previous, version = self.plan, self._version
        snapshot = self._view.snapshot(previous, self._clock())
        found = await self._while_leading(self._optimize(snapshot))
        self._planned_s = self._clock()
        # Sites refuse what is not newer than their plan, also where the store was lost and starts from nothing.
        epoch = 1 + max(0 if previous is None else previous.epoch, self._view.highest_epoch())
        plan = msgspec.structs.replace(found, epoch=epoch, leader_id=self.hub_id)
        if previous is not None and _same(previous, plan):
            return
        written = await self._store.put(PLAN_KEY, msgspec.json.encode(plan), expected=version, fence=fence)
        self.plan, self._version = plan, written
        self.num_plans += 1
        self._tell(previous or Plan(), plan)
        _log.info(
            "plan %d: %d assignments, %s, %.2f an hour", epoch, len(plan.assignments), plan.solver, plan.objective
        )

    def _tell(self, before: Plan, plan: Plan) -> None:
        """Records which placements have changed."""

        def placed(of: Plan) -> dict[tuple[str, str, str], Assignment]:
            return {(item.model, item.site_id, item.accelerator): item for item in of.assignments}

        old, new = placed(before), placed(plan)
        for key in sorted({*old, *new}):
            was, will = (0 if key not in of else of[key].num_replicas for of in (old, new))
            if was != will:
                model, site_id, accelerator = key
                notes = [note.text for note in plan.notes if note.model == model]
                self.decisions.changed(
                    "placement",
                    was,
                    will,
                    "; ".join((new[key].reason if key in new else f"not in plan {plan.epoch}", *notes)),
                    objective=f"{plan.objective:.2f} an hour with all penalties, by {plan.solver}; locks and capacity hold",
                    source=f"{model}@{site_id} on {accelerator}",
                )

    async def _while_leading(self, planning: Awaitable[Plan]) -> Plan:
        """Keeps the lead while the solver works, which may take longer than the lead's life."""
        task = asyncio.ensure_future(planning)
        try:
            while not (await asyncio.wait({task}, timeout=self._step_s))[0]:
                await self._leadership.step(eligible=True)
            return task.result()
        finally:
            task.cancel()


def _same(before: Plan, after: Plan) -> bool:
    """Whether nobody would act differently; reasons and costs do not count."""

    def acts(plan: Plan) -> tuple[object, ...]:
        replicas = tuple(msgspec.structs.replace(item, reason="") for item in plan.assignments)
        shares = tuple(msgspec.structs.replace(route, weight=round(route.weight, 2)) for route in plan.routes)
        return plan.site_ids, replicas, shares, plan.locks

    return acts(before) == acts(after)
