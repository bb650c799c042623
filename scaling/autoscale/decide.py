"""Decides how many replicas a service should have, from what was observed and the time alone.

The shape is Knative's pod autoscaler: a stable and a panic window, no shrinking in a panic, shrinking by the largest wish
within a delay. The names and the stepwise shrinking are Baseten's. Demand in several signals, a forecast and an objective
enter as further wishes; the largest wins, and the reason names it.
"""

from __future__ import annotations

import math
from dataclasses import replace

from sixfold.scaling.autoscale.fleet import Decision, Fleet, Point, State
from sixfold.scaling.autoscale.forecast import predict, seasons_kept
from sixfold.scaling.autoscale.objective import move_share, pressure
from sixfold.scaling.autoscale.signals import mean_demand, measure
from sixfold.scaling.spec import ScalingSpec

_EXACT = 1e-9
"""25 requests at 0.7 of 10 each are 3.5714 replicas; 7 are 1.0000000000000002 in floating point and must be 1."""


def restarted(fleet: Fleet, now_s: float) -> State:
    """The state of an autoscaler that lost its history while replicas run: a panic, so that none leaves for a window."""
    if fleet.num_provisioned <= 1:
        return State()
    return State(panic_s=now_s, panic_peak=fleet.num_provisioned)


def decide(spec: ScalingSpec, state: State, fleet: Fleet, now_s: float) -> Decision:
    """The replicas that the service should have now.

    Args:
        spec: Bounds and targets.
        state: Of the last decision; ``State()`` at first, or `restarted`.
        fleet: What was observed.
        now_s: The time, in the clock of the earlier decisions.

    Source: Knative Serving, pkg/autoscaler/scaling/autoscaler.go; Baseten, Autoscaling (documentation).
    """
    state = _with_share(spec, state, fleet, now_s)
    state = _with_point(spec, state, measure(spec, fleet, state.share, now_s), now_s)
    wanted, reason, state = _wish(spec, state, fleet, now_s)
    foreseen = _foreseen(spec, state)
    if foreseen > wanted:
        wanted, reason = foreseen, f"the forecast expects {foreseen} to be needed within {_lead_s(spec):.0f} s"
    if wanted == 0 and fleet.num_held > 0:
        wanted, reason = 1, f"{fleet.num_held:.0f} requests wait for a first replica"
    wanted, reason = _bounded(spec, wanted, reason)
    count, reason, state = _after_delay(spec, state, wanted, reason, fleet, now_s)
    return Decision(num_replicas=count, reason=reason, panicking=state.panic_s is not None, state=state)


def _wish(spec: ScalingSpec, state: State, fleet: Fleet, now_s: float) -> tuple[int, str, State]:
    """What the two windows ask for."""
    stable, stable_name = mean_demand(state.points, now_s - spec.window_s)
    surge, surge_name = mean_demand(state.points, now_s - spec.panic_window_s)
    ready = max(1, fleet.num_ready)
    most = math.ceil(spec.max_scale_up_rate * ready)
    wanted, wanted_in_panic = min(_ceil(stable), most), min(_ceil(surge), most)
    over = _ceil(surge) / ready >= spec.panic_threshold
    if over:
        state = replace(state, panic_s=now_s)
    elif state.panic_s is not None and state.panic_s + spec.window_s < now_s:
        state = replace(state, panic_s=None, panic_peak=0)
    reason = f"{stable_name} keep {stable:.2f} replicas busy over {spec.window_s:.0f} s"
    if state.panic_s is None:
        return wanted, reason, state
    if wanted_in_panic > wanted:
        wanted = wanted_in_panic
        reason = f"a surge: {surge_name} keep {surge:.2f} replicas busy over {spec.panic_window_s:.0f} s"
    if wanted < state.panic_peak:
        wanted, reason = state.panic_peak, f"a surge {now_s - state.panic_s:.0f} s ago: nothing shrinks; now {reason}"
    return wanted, reason, replace(state, panic_peak=wanted)


def _bounded(spec: ScalingSpec, wanted: int, reason: str) -> tuple[int, str]:
    if wanted > spec.max_replicas:
        return spec.max_replicas, f"{reason}; max_replicas allows {spec.max_replicas} of {wanted}"
    if wanted < spec.min_replicas:
        return spec.min_replicas, f"{reason}; min_replicas keeps {spec.min_replicas}"
    return wanted, reason


def _after_delay(
    spec: ScalingSpec, state: State, wanted: int, reason: str, fleet: Fleet, now_s: float
) -> tuple[int, str, State]:
    """Shrinks by the largest wish within the delay, a part of the excess at a time."""
    kept = tuple(peak for peak in state.peaks if peak[1] > wanted and peak[0] > now_s - spec.scale_down_delay_s)
    state = replace(state, peaks=(*kept, (now_s, wanted)))
    largest = min(state.peaks[0][1], spec.max_replicas)
    current = min(fleet.num_provisioned, spec.max_replicas)
    if largest >= current:
        if largest > wanted:
            reason = f"{largest} were needed within the last {spec.scale_down_delay_s:.0f} s; now {wanted}: {reason}"
        return largest, reason, state
    waited_s = math.inf if state.shrunk_s is None else now_s - state.shrunk_s
    if waited_s < spec.scale_down_delay_s:
        reason = f"{current - largest} too many, but the last left only {waited_s:.0f} s ago; {reason}"
        return max(current, spec.min_replicas), reason, state
    leaving = max(1, math.floor((current - largest) * spec.max_scale_down_rate + _EXACT))
    reason = f"{current - largest} too many for {spec.scale_down_delay_s:.0f} s, {leaving} leave; {reason}"
    return current - leaving, reason, replace(state, shrunk_s=now_s)


def _with_share(spec: ScalingSpec, state: State, fleet: Fleet, now_s: float) -> State:
    """Moves what a replica is given, once a window, and only when what was ordered before has arrived."""
    if spec.slo is None or fleet.num_starting or fleet.num_ready == 0:
        return state
    if state.share_moved_s is not None and now_s - state.share_moved_s < spec.window_s:
        return state
    measured = pressure(spec.slo, fleet)
    if measured is None:
        return state
    return replace(state, share=move_share(state.share, measured), share_moved_s=now_s)


def _with_point(spec: ScalingSpec, state: State, point: Point, now_s: float) -> State:
    """Adds a point to the window and to the forecast's buckets."""
    kept = tuple(old for old in state.points if old.at_s > now_s - spec.window_s)
    state = replace(state, points=(*kept, point))
    if spec.forecast is None:
        return state
    start_s = now_s if state.bucket_start_s is None else state.bucket_start_s
    buckets, total, count = state.buckets, state.bucket_sum, state.bucket_points
    closed = int((now_s - start_s) / spec.forecast.bucket_s)
    if closed > 0:
        # Buckets in which nobody looked repeat the last value: no news is not a fall to zero.
        mean = total / count if count else (buckets[-1] if buckets else 0.0)
        limit = seasons_kept(spec.forecast.bucket_s, spec.forecast.season_s)
        buckets = (*buckets, *(mean for _ in range(min(closed, limit))))[-limit:]
        start_s, total, count = start_s + closed * spec.forecast.bucket_s, 0.0, 0
    demand = max(point.requests, point.work, point.cache)
    return replace(state, buckets=buckets, bucket_start_s=start_s, bucket_sum=total + demand, bucket_points=count + 1)


def _foreseen(spec: ScalingSpec, state: State) -> int:
    if spec.forecast is None:
        return 0
    lead_s = _lead_s(spec)
    return _ceil(predict(state.buckets, spec.forecast.bucket_s, lead_s=lead_s, season_s=spec.forecast.season_s))


def _lead_s(spec: ScalingSpec) -> float:
    return spec.cold_start_s + spec.window_s


def _ceil(demand: float) -> int:
    """Whole replicas; the least demand needs one."""
    return max(1, math.ceil(demand - _EXACT)) if demand > 0.0 else 0
