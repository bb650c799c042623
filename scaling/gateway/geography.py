"""Which regions a request may enter, and which site gets it: the hub's plan, as a gateway keeps it.

Locks are held here whatever else goes wrong: `Fleet` asks `Geography.permits` for every replica that it lists, so no retry,
hedge, split or resumed stream leaves the regions of a locked model. Shares only order what is permitted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from random import Random

from sixfold.core.decisions import DecisionLog
from sixfold.core.errors import NotReady, RequestError
from sixfold.scaling.agent.georoute import RoutingTable, shares
from sixfold.scaling.agent.messages import GatewayLoad, LoadAnswer, LoadReport
from sixfold.scaling.hub.model import ANY_ORIGIN, Plan
from sixfold.scaling.route.router import ReplicaFacts

_TARGET_UTILIZATION = 0.7
"""Of which agents tell the concurrency: a site has room up to all of it."""
_SAME_SHARE = 0.01


class RegionLocked(RequestError):
    """The model's data may not be where the request arrived."""

    status = 421
    type = "invalid_request_error"
    default_code = "region_locked"


class Journey:
    """One request's place in the world. Owned by its request; `Geography` counts it from `enter` to `leave`.

    Attributes:
        model: The plan's name of what it asks for.
        origin: Where its client is.
        site_id: The site that it was last sent to; "" before.
        lost_at: Sites whose servers were lost with it: a site is lost as a whole, and tries are few.
    """

    __slots__ = ("lost_at", "model", "origin", "site_id")

    def __init__(self, model: str, origin: str) -> None:
        self.model = model
        self.origin = origin
        self.site_id = ""
        self.lost_at: frozenset[str] = frozenset()


class Geography:
    """The newest plan and what was seen of the sites. Owned by a gateway; used in one event loop.

    Args:
        region: Where the gateway is; "" if nobody said.
        follows: Whether there is a plan to be had. Without one nothing is locked; with one, nothing is served before it is known.
        clock: Monotonic seconds.
        decisions: Told when shares change and sites are left alone.
        refusal_s: How long a site that refused is left alone.
        draw: Evenly distributed in [0, 1).
    """

    def __init__(
        self,
        region: str,
        *,
        follows: bool,
        clock: Callable[[], float],
        decisions: DecisionLog,
        refusal_s: float = 2.0,
        draw: Callable[[], float] | None = None,
    ) -> None:
        self._region = region
        self._follows = follows
        self._clock = clock
        self._decisions = decisions
        self._draw = draw or Random().random
        self._table = RoutingTable(refusal_s=refusal_s)
        self._locks: dict[str, frozenset[str]] = {}
        self._models: frozenset[str] = frozenset()
        self._origins: frozenset[str] = frozenset()
        self._journeys: set[Journey] = set()

    @property
    def plan(self) -> Plan:
        """The newest plan that the gateway was given; epoch 0 before the first."""
        return self._table.plan

    def offer(self, plan: Plan) -> bool:
        """Takes a plan if it is newer."""
        before = self.plan
        if not self._table.offer(plan):
            return False
        self._locks = {lock.model: frozenset(lock.regions) for lock in plan.locks}
        self._models = frozenset((*self._locks, *(route.model for route in plan.routes)))
        self._origins = frozenset(route.origin for route in plan.routes) - {ANY_ORIGIN}
        self._tell_shares(before, plan)
        return True

    def permits(self, names: Collection[str], region: str) -> bool:
        """Whether a request for a model of these names may enter a region.

        Args:
            names: Whatever the model is called: by the client, by its server, and the model that it adapts. None at all for a
                request that names none: it may be for a locked model, so it stays where the gateway is.
            region: Of the replica.
        """
        if not self._follows:
            return True
        if self.waits_for_plan:
            return False
        if not names:
            return not self._locks or region == self._region
        return all(region in self._locks[name] for name in names if name in self._locks)

    @property
    def waits_for_plan(self) -> bool:
        """Whether nothing may be served, as nobody knows what is locked."""
        return self._follows and self.plan.epoch == 0

    def check(self, names: Collection[str]) -> None:
        """Refuses what may not be served from here, before anything is done with it.

        Raises:
            RegionLocked: The gateway itself is outside of the model's regions.
            NotReady: There is no plan yet, so nobody knows what is locked.
        """
        if not self._follows:
            return
        if self.waits_for_plan:
            raise NotReady(
                "This gateway does not know yet which regions its models are locked to. Try again in a moment.",
                retry_after_s=2.0,
            )
        if not self.permits(names, self._region):
            raise RegionLocked(
                f"The model may be used in {self._regions_of(names)} only, and this gateway is in {self._region}. "
                "Send the request to a gateway there.",
                param="model",
            )

    def no_replica(self, names: Collection[str]) -> RequestError:
        """What a client is told when no server can take its request."""
        where = f" in the regions that it may enter ({self._regions_of(names)})" if self._is_locked(names) else ""
        return NotReady(f"No server of this model is up right now{where}. Try again in a moment.", retry_after_s=2.0)

    def enter(self, names: Sequence[str], origin: str | None) -> Journey:
        """A request has arrived.

        Args:
            names: As of `permits`.
            origin: Where its client says to be; taken if the plan knows it, else the gateway's own region.
        """
        known = next((name for name in names if name in self._models), names[0] if names else "")
        journey = Journey(known, origin if origin is not None and origin in self._origins else self._region)
        if self._follows and known:
            self._journeys.add(journey)
        return journey

    def leave(self, journey: Journey) -> None:
        """It has ended."""
        self._journeys.discard(journey)

    def prefer(
        self, journey: Journey, session: str | None, candidates: Sequence[ReplicaFacts]
    ) -> Sequence[ReplicaFacts]:
        """Of the replicas that may take it, those of the site whose turn it is; all of them where the plan says nothing.

        Args:
            journey: Of the request.
            session: Requests of one go to one site as long as the shares stay.
            candidates: Permitted ones.
        """
        draw = self._draw() if session is None else _even(session)
        found = self._table.sites(journey.model, journey.origin, self._clock(), draw)
        for site_id in sorted(found, key=journey.lost_at.__contains__):  # stable: those that lost it come last
            own = [each for each in candidates if each.site == site_id]
            if own:
                journey.site_id = site_id
                return own
        journey.site_id = candidates[0].site if len({each.site for each in candidates}) == 1 else ""
        return candidates

    def lost(self, journey: Journey) -> None:
        """The server that had the request was lost: the next try goes to another site, if there is one."""
        journey.lost_at |= {journey.site_id}

    def refused(self, journey: Journey) -> None:
        """The site has nobody left who takes the request: others are asked before it for a while."""
        if not journey.site_id:
            return
        now_s = self._clock()
        if not self._table.refuses(journey.model, journey.site_id, now_s):
            self._decisions.changed(
                "site",
                journey.site_id,
                "the next nearest",
                f"no server of {journey.model} at {journey.site_id} took a request",
                objective=self._objective(journey.model),
                source=f"{journey.model}@{journey.site_id}",
            )
        self._table.refused(journey.model, journey.site_id, now_s)

    def heard(self, answer: LoadAnswer) -> None:
        """A site's agent told how much there is, and how much others have sent there."""
        for each in answer.models:
            own = [journey for journey in self._journeys if journey.model == each.model]
            num_here = sum(journey.site_id == answer.site_id for journey in own)
            of_others = max(0.0, each.num_in_flight - num_here)
            room = each.num_ready * each.concurrency / _TARGET_UTILIZATION - of_others
            self._table.saw(each.model, answer.site_id, room=min(1.0, max(0.0, room / max(1, len(own)))))

    def report(self, gateway_id: str, site_id: str, *, home: bool) -> LoadReport:
        """What a site's agent should know.

        Args:
            gateway_id: Of this gateway.
            site_id: The site; "" while its name is not known.
            home: Whether it is the one that is told the demand.
        """
        demand = Counter((journey.model, journey.origin) for journey in self._journeys)
        routed = Counter((each.model, each.origin) for each in self._journeys if each.site_id == site_id and site_id)
        return LoadReport(
            gateway_id=gateway_id,
            epoch=self.plan.epoch,
            demand=_loads(demand) if home else (),
            routed=_loads(routed),
        )

    def _tell_shares(self, before: Plan, plan: Plan) -> None:
        for model in sorted({route.model for route in (*before.routes, *plan.routes)}):
            old, new = (
                {share.site_id: share.weight for share in shares(each, model, self._region, {}, 0.0)}
                for each in (before, plan)
            )
            for site_id in sorted({*old, *new}):
                was, will = old.get(site_id, 0.0), new.get(site_id, 0.0)
                if abs(was - will) >= _SAME_SHARE:
                    self._decisions.changed(
                        "site_share",
                        round(was, 3),
                        round(will, 3),
                        f"plan {plan.epoch} of {plan.leader_id or 'the hub'}",
                        objective=self._objective(model),
                        source=f"{model}@{site_id}",
                    )

    def _objective(self, model: str) -> str:
        locked = f"; locked to {self._regions_of((model,))}" if model in self._locks else ""
        return f"the plan's shares for {self._region or 'any origin'}{locked}"

    def _is_locked(self, names: Collection[str]) -> bool:
        return any(name in self._locks for name in names)

    def _regions_of(self, names: Collection[str]) -> str:
        locks = [self._locks[name] for name in names if name in self._locks]
        return ", ".join(sorted(frozenset[str].intersection(*locks))) if locks else ""


def _loads(counts: Counter[tuple[str, str]]) -> tuple[GatewayLoad, ...]:
    return tuple(
        GatewayLoad(model=model, origin=origin, num_in_flight=count)
        for (model, origin), count in sorted(counts.items())
    )


def _even(session: str) -> float:
    """A number in [0, 1) that depends on the session alone, so that several gateways agree."""
    digest = hashlib.blake2b(session.encode(errors="surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48
