"""One simulated site: its replicas, those that start and those that drain, and the autoscaler that orders them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import msgspec

from sixfold.core.autoscaling.load import ModelLoad
from sixfold.scaling.autoscale.decide import decide, restarted
from sixfold.scaling.autoscale.fleet import Fleet, State
from sixfold.scaling.sim.replica import ReplicaProfile, SimReplica
from sixfold.scaling.sim.request import Job
from sixfold.scaling.sim.routing import RoutingPolicy
from sixfold.scaling.spec import ScalingSpec, Slo


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """What a site does about its size at one moment: replicas to start, and those that are gone at once."""

    num_starting: int
    num_removed: int
    reason: str


class Site:
    """The replicas of one service in one place. Owner: the simulation.

    Args:
        name: Where.
        profile: Of each replica.
        scaling: Bounds and targets; equal bounds make a static fleet.
        policy: Routes within the site.
        num_initial: Replicas that are ready at the start.
        now_s: The start.
    """

    def __init__(
        self,
        name: str,
        profile: ReplicaProfile,
        scaling: ScalingSpec,
        policy: RoutingPolicy,
        *,
        num_initial: int,
        now_s: float,
    ) -> None:
        self.name = name
        self.profile = profile
        self.scaling = scaling
        self.policy = policy
        self.ready: list[SimReplica] = []
        self.draining: set[SimReplica] = set()
        self.held: deque[Job] = deque()
        self.num_starting = 0
        self.num_cancelled = 0
        """Starts whose replica is no longer wanted when it comes."""
        self.up = True
        self.num_losses = 0
        self.num_open = 0
        """Requests at its replicas."""
        self._num_made = 0
        self._state = State()
        self._last: dict[str, float] = {}
        self._last_s = now_s
        self._ended: deque[tuple[float, float, float]] = deque()
        for _ in range(num_initial):
            self.add()
        if num_initial > 1:
            self._state = restarted(Fleet(loads=tuple(ModelLoad(model_name=name) for _ in self.ready)), now_s)

    @property
    def num_replicas(self) -> int:
        """All that are paid for: ready, starting and draining ones."""
        return len(self.ready) + self.num_starting + len(self.draining)

    def add(self) -> SimReplica:
        """A replica takes requests from now on."""
        self._num_made += 1
        replica = SimReplica(f"{self.name}/{self._num_made}", self.profile, self.name)
        self.ready.append(replica)
        return replica

    def route(self, job: Job, now_s: float) -> SimReplica | None:
        """The replica that gets a request; None where none is ready, and the request is held."""
        if not self.ready:
            self.held.append(job)
            return None
        return self.ready[self.policy.choose(job, self.ready, now_s).index]

    def started(self, job: Job) -> None:
        """The first token of a request has come."""
        self.policy.started(job)

    def ended(self, job: Job, now_s: float) -> None:
        """Remembers the times of a request that was answered, for the objective."""
        self.policy.ended(job)
        if self.scaling.slo is not None and job.ttft_s is not None and job.e2e_s is not None:
            self._ended.append((now_s, job.ttft_s, job.e2e_s))

    def resize(self, now_s: float) -> Sizing:
        """Asks the autoscaler, and starts or removes replicas as it says; the caller tells when those that start are there."""
        fleet = self._fleet(now_s)
        decision = decide(self.scaling, self._state, fleet, now_s)
        self._state = decision.state
        return self.order(decision.num_replicas, decision.reason)

    def order(self, num_replicas: int, reason: str) -> Sizing:
        """Starts or removes replicas until there are so many, for a reason; see `resize`."""
        change = num_replicas - len(self.ready) - self.num_starting
        if change >= 0:
            revived = min(change, self.num_cancelled)
            self.num_cancelled -= revived
            self.num_starting += change
            return Sizing(num_starting=change - revived, num_removed=0, reason=reason)
        removed = min(-change, self.num_starting)
        self.num_starting -= removed
        self.num_cancelled += removed
        for _ in range(-change - removed):
            replica = min(self.ready, key=lambda each: each.num_running)
            self.ready.remove(replica)
            if replica.num_running:
                replica.draining = True
                self.draining.add(replica)
        return Sizing(num_starting=0, num_removed=-change, reason=reason)

    def replica_started(self) -> SimReplica | None:
        """A replica that was ordered is there; None where it is not wanted any more."""
        if self.num_cancelled:
            self.num_cancelled -= 1
            return None
        self.num_starting -= 1
        return self.add()

    def lose(self, now_s: float) -> list[Job]:
        """Everything dies; gives out all requests that it had."""
        jobs = [*self.held]
        for replica in (*self.ready, *self.draining):
            jobs += replica.lose(now_s)
        for job in jobs:
            self.policy.ended(job)
        self.held.clear()
        self.ready.clear()
        self.draining.clear()
        self.num_starting = self.num_cancelled = self.num_open = 0
        self.num_losses += 1
        self.up = False
        self._state = State()
        return jobs

    def _fleet(self, now_s: float) -> Fleet:
        loads: list[ModelLoad] = []
        last, elapsed_s = self._last, max(1e-9, now_s - self._last_s)
        self._last = {}
        for replica in self.ready:
            load = replica.load(now_s)
            self._last[replica.replica_id] = load.request_seconds
            before = last.get(replica.replica_id)
            if before is not None:
                load = msgspec.structs.replace(load, num_in_flight=(load.request_seconds - before) / elapsed_s)
            loads.append(load)
        self._last_s = now_s
        ttft_s, e2e_s = self._slow(now_s)
        return Fleet(
            loads=tuple(loads), num_starting=self.num_starting, num_held=len(self.held), ttft_s=ttft_s, e2e_s=e2e_s
        )

    def _slow(self, now_s: float) -> tuple[float | None, float | None]:
        """The times at the promised percentile over a window."""
        slo = self.scaling.slo
        if slo is None:
            return None, None
        while self._ended and self._ended[0][0] < now_s - self.scaling.window_s:
            self._ended.popleft()
        if not self._ended:
            return None, None
        return _at(slo, [ttft for _, ttft, _ in self._ended]), _at(slo, [e2e for _, _, e2e in self._ended])


def _at(slo: Slo, times_s: list[float]) -> float:
    times_s.sort()
    return times_s[min(len(times_s) - 1, int(slo.attainment * len(times_s)))]
