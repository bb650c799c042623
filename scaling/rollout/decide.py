"""Decides how a rollout goes on, from what was seen of both revisions and the time alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from sixfold.scaling.spec import RolloutSpec

_QUIET_STEPS = 10.0
"""Where too few requests come to judge by, a step lasts so many times its least time: so long the new replicas were well."""


class Phase(StrEnum):
    """Where a rollout is."""

    STARTING = "starting"
    SHIFTING = "shifting"
    DONE = "done"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What became of requests, counted since some time before the rollout."""

    num_requests: int = 0
    num_failed: int = 0

    def since(self, earlier: Tally) -> Tally:
        """What came after an earlier count."""
        return Tally(
            num_requests=self.num_requests - earlier.num_requests, num_failed=self.num_failed - earlier.num_failed
        )

    @property
    def error_rate(self) -> float:
        """Failures as a share; 0 without requests."""
        return self.num_failed / self.num_requests if self.num_requests else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """Both revisions at one moment.

    Attributes:
        num_up: New replicas that take requests.
        num_wanted: New replicas that there should be.
        new: Outcomes of requests at the new ones.
        old: Outcomes of requests at the old ones.
        broken: Why the cluster has given the new ones up; None if it has not.
    """

    num_up: int
    num_wanted: int
    new: Tally = Tally()
    old: Tally = Tally()
    broken: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The state of a rollout; what one decision hands to the next.

    Attributes:
        phase: Where it is.
        step: Index of the share that holds; 0 while it starts.
        since_s: When the phase or step began.
        new: The new revision's count then.
        old: The old revision's count then.
        reason: Of the last change, for the log.
    """

    phase: Phase = Phase.STARTING
    step: int = 0
    since_s: float
    new: Tally = Tally()
    old: Tally = Tally()
    reason: str = "the new replicas start"

    @property
    def is_over(self) -> bool:
        """Whether one of both revisions may go."""
        return self.phase in (Phase.DONE, Phase.ROLLED_BACK)

    def share(self, spec: RolloutSpec) -> float:
        """What of the requests the new revision gets."""
        match self.phase:
            case Phase.STARTING | Phase.ROLLED_BACK:
                return 0.0
            case Phase.SHIFTING:
                return spec.shares[self.step]
            case Phase.DONE:
                return 1.0


def advance(spec: RolloutSpec, state: Rollout, sight: Sight, now_s: float) -> Rollout:
    """The state now; the same one if nothing changes. What is over stays as it is.

    Args:
        spec: Of the service.
        state: Of the last decision.
        sight: What is seen.
        now_s: The time, on the clock of ``state``.
    """
    if state.is_over:
        return state
    fault = _fault(spec, state, sight, now_s)
    if fault is not None:
        return replace(state, phase=Phase.ROLLED_BACK, since_s=now_s, reason=fault)
    if state.phase is Phase.STARTING:
        if sight.num_up < sight.num_wanted:
            return state
        return _enter(spec, state, 0, sight, now_s)
    if not _has_proved(spec, state, sight, now_s):
        return state
    if state.step + 1 < len(spec.shares):
        return _enter(spec, state, state.step + 1, sight, now_s)
    return replace(state, phase=Phase.DONE, since_s=now_s, reason="the new replicas have proved themselves")


def _fault(spec: RolloutSpec, state: Rollout, sight: Sight, now_s: float) -> str | None:
    """Why the new revision must go; None if it may stay."""
    if sight.broken is not None:
        return f"the new replicas do not run: {sight.broken}"
    if state.phase is Phase.STARTING:
        if now_s - state.since_s > spec.start_timeout_s:
            return f"{sight.num_up} of {sight.num_wanted} new replicas are up after {spec.start_timeout_s:g} s"
        return None
    if sight.num_up == 0:
        return "all new replicas are lost"
    new, old = sight.new.since(state.new), sight.old.since(state.old)
    allowed = spec.max_error_rate + old.error_rate
    # Judged as if the least number had come already: the first failure of few must not look like a rate of all.
    if new.num_failed > allowed * max(new.num_requests, spec.min_requests):
        return f"{new.num_failed} of {new.num_requests} requests failed at the new replicas, {old.error_rate:.1%} at the old"
    return None


def _has_proved(spec: RolloutSpec, state: Rollout, sight: Sight, now_s: float) -> bool:
    """Whether the new revision may take more."""
    if sight.num_up < sight.num_wanted:
        return False
    lasted_s = now_s - state.since_s
    enough = sight.new.since(state.new).num_requests >= spec.min_requests
    return lasted_s >= spec.step_s * (1.0 if enough else _QUIET_STEPS)


def _enter(spec: RolloutSpec, state: Rollout, step: int, sight: Sight, now_s: float) -> Rollout:
    return Rollout(
        phase=Phase.SHIFTING,
        step=step,
        since_s=now_s,
        new=sight.new,
        old=sight.old,
        reason=f"the new replicas get {spec.shares[step]:.0%} of the requests",
    )
