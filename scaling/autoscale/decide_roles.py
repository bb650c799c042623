"""Decides how many replicas compute prompts and how many write answers, from what their steps did and the time alone.

Demand is what was done, or more where work waits: by Little's law a queue that shall be passed in ``t`` seconds asks for a rate
of its length over ``t``. Speed is the fitted time of the steps that were done. Sizes grow at once and shrink after a delay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sixfold.scaling.autoscale.roles import (
    DecodeSpeed,
    RoleDemand,
    Roles,
    RoleSpeed,
    bounded,
    decode_speed,
    prefill_speed,
    size_roles,
)
from sixfold.scaling.autoscale.step_time import Measured, StepTime, fit
from sixfold.scaling.spec import RolesSpec

_SURGE_SHARE = 0.1
"""A surge is looked for in this share of the window."""

_KEPT_OF_A_KIND = 8
_MEMORY_S = 3600.0
"""A fit rests on the newest looks of each kind of step, by the rows and prompt tokens of one: a load that stands still for long
must not make forgotten what steps of other sizes took, or the next change of size would be decided by a single point."""

_LEAST_LOOKS = 3
"""Fewer say nothing: a fixed part and two kinds of work cannot be told apart."""

_PANIC = 2.0
"""A surge is a demand of so many times what the present replicas bear; Knative's threshold."""

_FAR = 2.0
"""A fit is believed up to so many times the largest step that was seen: of a load that never varies it knows one point."""

_NOTHING = RoleDemand(prefill_tokens_per_s=0.0, decode_tokens_per_s=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolesLook:
    """Both roles, from one look at their servers to the next.

    Attributes:
        current: What was ordered last.
        served: Tokens a second of all replicas, each over its own time between two answers: prompts computed, wherever, and
            tokens generated.
        prompts_at_decode_tokens_per_s: Of the served prompt tokens, those that decode replicas computed.
        prefill: What the steps of prefill replicas did meanwhile, all together; None where there were none.
        decode: The same of decode replicas. Prefill replicas have no rows: the one token that a prompt ends with
            is thrown away.
        waiting_tokens: Prompt tokens at prefill replicas that no step has begun with.
        num_streams: Requests in flight at decode replicas, and those that wait for one.
        is_prefill_up: Whether any prefill replica takes requests; else decode replicas compute all prompts.
        max_step_tokens: Largest step that a server may do now.
        max_rows: Most sequences in one step.
    """

    current: Roles
    served: RoleDemand = _NOTHING
    prompts_at_decode_tokens_per_s: float = 0.0
    prefill: Measured | None = None
    decode: Measured | None = None
    waiting_tokens: float = 0.0
    num_streams: float = 0.0
    is_prefill_up: bool = True
    max_step_tokens: float = 2048.0
    max_rows: float = 256.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RolesPoint:
    """Demand at one moment, as it was measured.

    Attributes:
        at_s: When.
        prefill_tokens_per_s: Prompt tokens computed, wherever.
        prompts_at_decode_tokens_per_s: As of `RolesLook`.
        waiting_tokens: As of `RolesLook`.
        decode_tokens_per_s: Tokens generated.
        num_streams: As of `RolesLook`.
    """

    at_s: float
    prefill_tokens_per_s: float
    prompts_at_decode_tokens_per_s: float
    waiting_tokens: float
    decode_tokens_per_s: float
    num_streams: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsSeen:
    """The steps of one look.

    Attributes:
        at_s: When.
        kind: Alike for looks whose steps were about as large: within a half, of rows and of prompt tokens.
        work: What they did, and how long it took.
    """

    at_s: float
    kind: tuple[int, int]
    work: Measured


Peaks = tuple[tuple[float, int], ...]
"""``(at_s, wanted)`` within the delay; falling in value, so that the first is the largest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolesState:
    """What one decision hands to the next.

    Attributes:
        points: Demand within the window.
        prefill_steps: Looks at prefill replicas, newest last.
        decode_steps: The same of decode replicas.
        prefill_peaks: Wanted prefill replicas.
        decode_peaks: Wanted decode replicas.
    """

    points: tuple[RolesPoint, ...] = ()
    prefill_steps: tuple[StepsSeen, ...] = ()
    decode_steps: tuple[StepsSeen, ...] = ()
    prefill_peaks: Peaks = ()
    decode_peaks: Peaks = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RolesDecision:
    """How many replicas each role should have, and why; with the state for the next decision."""

    roles: Roles
    state: RolesState = field(default_factory=RolesState)


def restarted_roles(current: Roles, now_s: float, state: RolesState | None = None) -> RolesState:
    """The state at the start, or after a time in which nothing could be seen: what runs counts as wanted just now, so that none
    leaves for a delay.

    Args:
        current: What runs.
        now_s: The time.
        state: What is remembered of speeds and demand; None for nothing.
    """
    return replace(
        state or RolesState(),
        prefill_peaks=((now_s, current.num_prefill),),
        decode_peaks=((now_s, current.num_decode),),
    )


def decide_roles(spec: RolesSpec, state: RolesState, look: RolesLook, now_s: float) -> RolesDecision:
    """The replicas that both roles should have now.

    Args:
        spec: Bounds and promised times.
        state: Of the last decision; `restarted_roles` at first.
        look: What was observed since.
        now_s: The time, in the clock of the earlier decisions.
    """
    state = _with_look(spec, state, look, now_s)
    wanted = _wanted(spec, state, look, now_s)
    if wanted is None:
        kept = replace(bounded(spec, look.current), reason="no step was measured yet: what runs stays")
        return RolesDecision(roles=kept, state=state)
    if not look.is_prefill_up:
        wanted = _without_prefill(spec, wanted, look.current)
    state = replace(
        state,
        prefill_peaks=_with_peak(state.prefill_peaks, wanted.num_prefill, now_s, spec.scale_down_delay_s),
        decode_peaks=_with_peak(state.decode_peaks, wanted.num_decode, now_s, spec.scale_down_delay_s),
    )
    return RolesDecision(roles=_after_delay(spec, state, wanted, look.current), state=state)


def _with_look(spec: RolesSpec, state: RolesState, look: RolesLook, now_s: float) -> RolesState:
    """Adds what was observed, and forgets what is too old."""
    point = RolesPoint(
        at_s=now_s,
        prefill_tokens_per_s=look.served.prefill_tokens_per_s,
        prompts_at_decode_tokens_per_s=look.prompts_at_decode_tokens_per_s,
        waiting_tokens=look.waiting_tokens,
        decode_tokens_per_s=look.served.decode_tokens_per_s,
        num_streams=look.num_streams,
    )
    return replace(
        state,
        points=(*(old for old in state.points if old.at_s > now_s - spec.window_s), point),
        prefill_steps=_with_steps(state.prefill_steps, look.prefill, now_s),
        decode_steps=_with_steps(state.decode_steps, look.decode, now_s),
    )


def _with_steps(steps: tuple[StepsSeen, ...], work: Measured | None, now_s: float) -> tuple[StepsSeen, ...]:
    if work is None or work.seconds <= 0.0 or work.steps <= 0.0:
        return steps
    kind = _kind(work.decode_rows / work.steps), _kind(work.prefill_tokens / work.steps)
    kept = [each for each in steps if each.at_s > now_s - _MEMORY_S]
    alike = [each for each in kept if each.kind == kind]
    if len(alike) >= _KEPT_OF_A_KIND:
        kept.remove(alike[0])
    return (*kept, StepsSeen(at_s=now_s, kind=kind, work=work))


def _kind(size: float) -> int:
    return round(2.0 * math.log2(1.0 + size))


def _wanted(spec: RolesSpec, state: RolesState, look: RolesLook, now_s: float) -> Roles | None:
    """What the demand asks for; None while nothing is known of the speed that it must be held against."""
    decode = _decode_speed(spec, state, look)
    prefill = _prefill_speed(state, look)
    stable = _demand(spec, _since(state.points, now_s - spec.window_s), decode)
    surge = _demand(spec, _since(state.points, now_s - _SURGE_SHARE * spec.window_s), decode)
    is_unknown = (prefill is None and stable.prefill_tokens_per_s > 0.0) or (
        decode.tokens_per_s is None and stable.decode_tokens_per_s > 0.0
    )
    if is_unknown:
        return None
    speed = RoleSpeed(
        prefill_tokens_per_s=math.inf if prefill is None else prefill,
        decode_tokens_per_s=math.inf if decode.tokens_per_s is None else decode.tokens_per_s,
    )
    current, share = look.current, spec.target_utilization
    demand = RoleDemand(
        prefill_tokens_per_s=_asked(
            stable.prefill_tokens_per_s,
            surge.prefill_tokens_per_s,
            current.num_prefill * speed.prefill_tokens_per_s * share,
        ),
        decode_tokens_per_s=_asked(
            stable.decode_tokens_per_s,
            surge.decode_tokens_per_s,
            current.num_decode * speed.decode_tokens_per_s * share,
        ),
    )
    roles = size_roles(spec, demand, speed, current=current)
    if not any(point.prompts_at_decode_tokens_per_s for point in state.points):
        return roles
    return replace(roles, reason=f"{roles.reason}; prompts that decode replicas compute count as generated tokens, too")


def _demand(spec: RolesSpec, points: Sequence[RolesPoint], decode: DecodeSpeed) -> RoleDemand:
    """The mean of the points: what was done, or what those that wait ask for, whichever is more."""
    count = len(points)
    generated = max(
        sum(point.decode_tokens_per_s for point in points) / count,
        sum(point.num_streams for point in points) / count / decode.pace_s,
    )
    beside = sum(point.prompts_at_decode_tokens_per_s for point in points) / count
    return RoleDemand(
        prefill_tokens_per_s=max(
            sum(point.prefill_tokens_per_s for point in points) / count,
            sum(point.waiting_tokens for point in points) / count / spec.ttft_s,
        ),
        decode_tokens_per_s=decode.with_prompts(generated, beside),
    )


def _asked(stable: float, surge: float, borne: float) -> float:
    """A surge counts at once where it is far beyond what the present replicas bear; else the window's mean does."""
    return max(stable, surge) if surge > _PANIC * borne else stable


def _decode_speed(spec: RolesSpec, state: RolesState, look: RolesLook) -> DecodeSpeed:
    """Without any prompts beside."""
    step_time = _fit(state.decode_steps)
    seen = max((each.work.decode_rows / each.work.steps for each in state.decode_steps), default=0.0)
    if step_time is None or seen == 0.0:
        return DecodeSpeed(pace_s=spec.inter_token_s)
    max_rows = min(look.max_rows, _FAR * max(1.0, seen))
    return decode_speed(step_time, inter_token_s=spec.inter_token_s, max_rows=max_rows)


def _prefill_speed(state: RolesState, look: RolesLook) -> float | None:
    """Prompt tokens that a replica computes in a second; None while nothing is known.

    Until prefill replicas have computed any, what decode replicas took for prompts is believed of them.
    """
    for steps in (state.prefill_steps, state.decode_steps):
        step_time = _fit(steps)
        seen = max((each.work.prefill_tokens / each.work.steps for each in steps), default=0.0)
        if step_time is not None and seen > 0.0:
            most = max(1.0, min(look.max_step_tokens, _FAR * seen))
            return prefill_speed(step_time, mean_prompt_tokens=0.0, max_step_tokens=most)
    return None


def _fit(steps: tuple[StepsSeen, ...]) -> StepTime | None:
    return fit([each.work for each in steps]) if len(steps) >= _LEAST_LOOKS else None


def _since(points: tuple[RolesPoint, ...], since_s: float) -> Sequence[RolesPoint]:
    """The points after a time; the newest at least."""
    return [point for point in points if point.at_s > since_s] or points[-1:]


def _with_peak(peaks: Peaks, wanted: int, now_s: float, delay_s: float) -> Peaks:
    return (*(peak for peak in peaks if peak[1] > wanted and peak[0] > now_s - delay_s), (now_s, wanted))


def _without_prefill(spec: RolesSpec, wanted: Roles, current: Roles) -> Roles:
    """While no prefill replica comes up, more of them would not, either, and decode replicas do the work of both."""
    kept = replace(
        wanted,
        num_prefill=min(wanted.num_prefill, current.num_prefill),
        num_decode=max(wanted.num_decode, current.num_decode),
        reason=f"no prefill replica is up; {wanted.reason}",
    )
    return bounded(spec, kept)


def _after_delay(spec: RolesSpec, state: RolesState, wanted: Roles, current: Roles) -> Roles:
    """Keeps what runs and was wanted within the delay, as far as both roles have room; none is started for what was."""
    kept_prefill = min(state.prefill_peaks[0][1], current.num_prefill, spec.max_prefill)
    kept_decode = min(state.decode_peaks[0][1], current.num_decode, spec.max_decode)
    spare_prefill, spare_decode = max(0, kept_prefill - wanted.num_prefill), max(0, kept_decode - wanted.num_decode)
    if spare_prefill == spare_decode == 0:
        return wanted
    over = max(0, wanted.total + spare_prefill + spare_decode - spec.max_replicas)
    less = min(over, spare_prefill)
    num_prefill = wanted.num_prefill + spare_prefill - less
    num_decode = wanted.num_decode + spare_decode - (over - less)
    reason = (
        f"{num_prefill} and {num_decode} were needed within the last {spec.scale_down_delay_s:.0f} s; "
        f"now {wanted.num_prefill} and {wanted.num_decode}: {wanted.reason}"
    )
    return Roles(num_prefill=num_prefill, num_decode=num_decode, reason=reason)
