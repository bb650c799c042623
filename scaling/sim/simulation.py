"""The clock of a simulated fleet: requests arrive, steps end, replicas come, sites are lost and found, in order of time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from sixfold.scaling.sim.replica import SimReplica
from sixfold.scaling.sim.request import Job, Outcome, TraceRequest
from sixfold.scaling.sim.site import Site, Sizing


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A site that is lost with all that runs there.

    Attributes:
        site: Its name.
        at_s: When.
        duration_s: After this it is empty and may start replicas again.
        detect_s: Time until gateways know; until then they send requests there, which wait for the end of this time.
    """

    site: str
    at_s: float
    duration_s: float
    detect_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How the world around the replicas behaves.

    Attributes:
        tick_s: Time between two decisions of an autoscaler.
        patience_s: A request that no step served in this time is given up by its client.
        travel_s: Time there and back between two sites; 0 within one.
        spill_at: A site with more requests than this multiple of what its replicas are meant for sends new ones on.
        replay_streams: Whether a request whose answer had begun is continued elsewhere when its site is lost; it then costs its
            whole work again.
    """

    tick_s: float = 2.0
    patience_s: float = 60.0
    travel_s: float = 0.1
    spill_at: float = 2.0
    replay_streams: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The fleet at one tick, for plots."""

    at_s: float
    num_ready: int
    num_replicas: int
    num_in_flight: int


@dataclass(slots=True, kw_only=True)
class History:
    """What happened. Owner: the simulation, which fills it.

    Attributes:
        jobs: All requests, by arrival.
        moments: Each tick.
        decisions: ``(at_s, site, replicas, reason)`` of each decision that changed something.
        replica_seconds: Time that replicas were paid for, by site: from the order to the end.
        end_s: When the last request ended.
    """

    jobs: list[Job] = field(default_factory=list[Job])
    moments: list[Moment] = field(default_factory=list[Moment])
    decisions: list[tuple[float, str, int, str]] = field(default_factory=list[tuple[float, str, int, str]])
    replica_seconds: dict[str, float] = field(default_factory=dict[str, float])
    end_s: float = 0.0


class Simulation:
    """Runs a trace through sites.

    Args:
        sites: By name; the first serves requests without an origin.
        rules: The world.
        losses: Sites that are lost.
    """

    def __init__(self, sites: Sequence[Site], rules: Rules, losses: Iterable[Loss] = ()) -> None:
        self._sites: Mapping[str, Site] = {site.name: site for site in sites}
        self._order = tuple(site.name for site in sites)
        self._rules = rules
        self._losses = tuple(losses)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = itertools.count()
        self._known_lost: set[str] = set()
        self._detected_s: dict[str, float] = {}
        self._history = History(replica_seconds=dict.fromkeys(self._order, 0.0))
        self._num_open = 0
        self._charged_s = 0.0
        self._last_arrival_s = 0.0

    def run(self, trace: Sequence[TraceRequest]) -> History:
        """Runs until each request has ended.

        Args:
            trace: By arrival.
        """
        self._last_arrival_s = trace[-1].arrived_s
        arrivals = iter(trace)
        upcoming = next(arrivals, None)
        for loss in self._losses:
            self._at(loss.at_s, partial(self._lose, loss))
        self._at(0.0, self._tick)
        while upcoming is not None or self._num_open:
            # Events go before requests of the same moment: a replica that is ready now serves them.
            if upcoming is not None and (not self._events or upcoming.arrived_s < self._events[0][0]):
                job = Job(upcoming)
                self._history.jobs.append(job)
                self._num_open += 1
                self._send(job, upcoming.arrived_s)
                upcoming = next(arrivals, None)
            else:
                at_s, _, action = heapq.heappop(self._events)
                action(at_s)
        self._charge(max(self._charged_s, self._history.end_s))
        return self._history

    def _at(self, at_s: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._numbers), action))

    def _send(self, job: Job, now_s: float) -> None:
        """Routes a request to a site and a replica there."""
        home = job.request.origin or self._order[0]
        site = self._choose_site(home)
        if site is None:
            self._end(job, Outcome.LOST, now_s)
            return
        if not site.up:  # nobody knows yet
            self._at(self._detected_s[site.name], partial(self._send, job))
            return
        job.num_attempts += 1
        job.travel_s = 0.0 if site.name == home else self._rules.travel_s
        replica = site.route(job, now_s)
        if replica is not None:
            self._submit(site, replica, job, now_s)

    def _choose_site(self, home: str) -> Site | None:
        """The nearest site that is not known to be lost and has room; where none has room, the emptiest."""
        names = [home, *(name for name in self._order if name != home)]
        sites = [self._sites[name] for name in names if name not in self._known_lost]
        if len(sites) <= 1:
            return sites[0] if sites else None
        first = sites[0]
        if not first.up or self._pressure(first) <= self._rules.spill_at:
            return first
        return min(sites, key=self._pressure)

    @staticmethod
    def _pressure(site: Site) -> float:
        meant = len(site.ready) * site.scaling.concurrency_target
        return site.num_open / meant if meant else float("inf")

    def _submit(self, site: Site, replica: SimReplica, job: Job, now_s: float) -> None:
        site.num_open += 1
        end_s = replica.submit(job, now_s)
        if end_s is not None:
            self._await_segment(site, replica, end_s)

    def _await_segment(self, site: Site, replica: SimReplica, end_s: float) -> None:
        version = replica.version
        self._at(end_s, partial(self._segment_ended, site, replica, version))

    def _segment_ended(self, site: Site, replica: SimReplica, version: int, now_s: float) -> None:
        if replica.version != version:
            return
        done, end_s = replica.finish_segment(now_s, now_s - self._rules.patience_s)
        for job in replica.started:
            site.started(job)
        for job in done:
            site.num_open -= 1
            site.ended(job, now_s)
            self._end(job, job.outcome, now_s)
        if end_s is not None:
            self._await_segment(site, replica, end_s)
        elif replica.draining:
            self._charge(now_s)
            site.draining.discard(replica)

    def _end(self, job: Job, outcome: Outcome, now_s: float) -> None:
        job.outcome = outcome
        self._num_open -= 1
        self._history.end_s = max(self._history.end_s, now_s)

    def _charge(self, now_s: float) -> None:
        """Pays for the time since the last change of any fleet; called before each change."""
        elapsed_s = now_s - self._charged_s
        for site in self._sites.values():
            self._history.replica_seconds[site.name] += site.num_replicas * elapsed_s
        self._charged_s = now_s

    def _tick(self, now_s: float) -> None:
        """All autoscalers decide."""
        self._charge(now_s)
        self._resize_all(now_s)
        sites = self._sites.values()
        for site in sites:
            self._expire_held(site, now_s)
        self._history.moments.append(
            Moment(
                at_s=now_s,
                num_ready=sum(len(site.ready) for site in sites),
                num_replicas=sum(site.num_replicas for site in sites),
                num_in_flight=sum(site.num_open + len(site.held) for site in sites),
            )
        )
        if self._num_open or now_s <= self._last_arrival_s:
            self._at(now_s + self._rules.tick_s, self._tick)

    def _resize_all(self, now_s: float) -> None:
        for site in self._sites.values():
            if site.up:
                self._carry_out(site, site.resize(now_s), now_s)

    def _carry_out(self, site: Site, sizing: Sizing, now_s: float) -> None:
        if sizing.num_starting or sizing.num_removed:
            self._history.decisions.append((now_s, site.name, len(site.ready) + site.num_starting, sizing.reason))
        num_losses = site.num_losses
        for _ in range(sizing.num_starting):
            self._at(now_s + site.scaling.cold_start_s, partial(self._started, site, num_losses))

    def _started(self, site: Site, num_losses: int, now_s: float) -> None:
        if site.num_losses != num_losses:
            return  # it was lost with its site
        self._charge(now_s)
        replica = site.replica_started()
        if replica is None:
            return
        held, site.held = site.held, type(site.held)()
        for job in held:
            target = site.route(job, now_s)
            if target is not None:
                self._submit(site, target, job, now_s)

    def _expire_held(self, site: Site, now_s: float) -> None:
        while site.held and site.held[0].request.arrived_s < now_s - self._rules.patience_s:
            self._end(site.held.popleft(), Outcome.EXPIRED, now_s)

    def _lose(self, loss: Loss, now_s: float) -> None:
        """A site dies: requests that it had are replayed when it is noticed, unless their answers had begun."""
        self._charge(now_s)
        site = self._sites[loss.site]
        jobs = site.lose(now_s)
        detected_s = now_s + loss.detect_s
        self._detected_s[site.name] = detected_s
        self._at(detected_s, partial(self._detect, site))
        for job in jobs:
            if job.first_token_s is not None and not self._rules.replay_streams:
                self._end(job, Outcome.LOST, now_s)
            else:
                self._at(detected_s, partial(self._send, job))
        self._at(now_s + loss.duration_s, partial(self._found, site))

    def _detect(self, site: Site, _now_s: float) -> None:
        """Its absence is noticed, unless it is back by then."""
        if not site.up:
            self._known_lost.add(site.name)

    def _found(self, site: Site, now_s: float) -> None:
        """The site may start replicas again; requests come when the first is ready."""
        self._charge(now_s)
        site.up = True
        self._known_lost.discard(site.name)
