"""How many replicas should prefill and how many decode, where the two are separate services."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sixfold.scaling.autoscale.step_time import StepTime
from sixfold.scaling.spec import RolesSpec

_EXACT = 1e-9
_WORTH_MOVING = 1.2
"""Where all run that may, a replica changes its role only if the busier role is busier by this factor than it need be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleSpeed:
    """What one replica of each role does per second while it keeps the promised times."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleDemand:
    """What clients ask for per second: prompt tokens that no cache holds, and generated tokens."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Replicas of each role, and why."""

    num_prefill: int
    num_decode: int
    reason: str = ""

    @property
    def total(self) -> int:
        """Of both."""
        return self.num_prefill + self.num_decode


def prefill_speed(step_time: StepTime, *, mean_prompt_tokens: float, max_step_tokens: float) -> float:
    """Prompt tokens that a replica computes in a second, in full steps.

    Args:
        step_time: The engine's.
        mean_prompt_tokens: Mean length of a prompt.
        max_step_tokens: Largest step.
    """
    # A prompt token attends to half of its prompt on average.
    seconds = step_time.seconds(
        prefill_tokens=max_step_tokens,
        decode_rows=0,
        kv_tokens=0,
        prefill_kv_tokens=max_step_tokens * mean_prompt_tokens / 2,
    )
    return max_step_tokens / seconds if seconds > 0.0 else math.inf


def decode_rows(step_time: StepTime, *, mean_context_tokens: float, inter_token_s: float, max_rows: float) -> float:
    """Sequences that may decode together while the time between two tokens is kept; at least one."""
    row_s = _row_s(step_time, mean_context_tokens)
    rows = (inter_token_s - step_time.base_s) / row_s if row_s > 0.0 else math.inf
    return max(1.0, math.floor(min(max_rows, rows)))


def decode_gap_s(step_time: StepTime, *, mean_context_tokens: float, rows: float) -> float:
    """The time between two tokens where so many sequences decode together."""
    return step_time.base_s + rows * _row_s(step_time, mean_context_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSpeed:
    """What one decode replica does.

    Attributes:
        pace_s: Between two tokens that clients are given: the promised time, unless not even one alone has it.
        tokens_per_s: Generated; None while nothing is known.
        step_time: Of its steps; None while nothing is known.
    """

    pace_s: float
    tokens_per_s: float | None = None
    step_time: StepTime | None = None

    def with_prompts(self, tokens_per_s: float, prompts_per_s: float) -> float:
        """The tokens whose generation needs as many replicas as these together with prompts that are computed beside them.

        Of ``n`` replicas prompts take the time of ``m = prompts_per_s * per_prefill_s``. The rest writes ``n - m`` replicas'
        tokens at most; and as each step is longer by its share of the prompts, as many rows less keep the pace as would have
        taken that time. Both are sums that ``n`` is not in, so what the replicas are sized to does not depend on what they were.
        """
        speed, step = self.tokens_per_s, self.step_time
        if step is None or speed is None or math.isinf(speed):
            return tokens_per_s
        busy = prompts_per_s * step.per_prefill_s
        taken = tokens_per_s + busy * speed
        if step.per_row_s == 0.0 or self.pace_s <= step.base_s:
            return taken
        paced = (self.pace_s - step.base_s) / (step.per_row_s * self.pace_s)  # a replica's tokens a second at that pace
        return max(taken, (tokens_per_s + busy / step.per_row_s) * min(1.0, speed / paced))


def decode_speed(step_time: StepTime, *, inter_token_s: float, max_rows: float) -> DecodeSpeed:
    """What a replica does whose steps hold as many sequences as the time between two tokens allows.

    Args:
        step_time: The engine's; what a cached token costs is taken to be in what a row costs.
        inter_token_s: The promised time.
        max_rows: Most sequences of a step.
    """
    rows = decode_rows(step_time, mean_context_tokens=0.0, inter_token_s=inter_token_s, max_rows=max_rows)
    gap_s = decode_gap_s(step_time, mean_context_tokens=0.0, rows=rows)
    tokens_per_s = rows / gap_s if gap_s > 0.0 else math.inf
    return DecodeSpeed(pace_s=max(inter_token_s, gap_s), tokens_per_s=tokens_per_s, step_time=step_time)


def size_roles(spec: RolesSpec, demand: RoleDemand, speed: RoleSpeed, *, current: Roles | None = None) -> Roles:
    """Gives each role the replicas that its demand keeps busy.

    Args:
        spec: Bounds, and the share of the speed that is planned for. Where ``max_replicas`` of both do not suffice, both roles
            are short by the same factor as far as their own bounds allow.
        demand: Measured or foreseen.
        speed: What a replica of each role does.
        current: What runs. Where all are asked for that there may be, it stays unless another division is better by a fifth: a
            change of role costs a start.
    """
    prefill = demand.prefill_tokens_per_s / (speed.prefill_tokens_per_s * spec.target_utilization)
    decode = demand.decode_tokens_per_s / (speed.decode_tokens_per_s * spec.target_utilization)
    asked = (
        f"{demand.prefill_tokens_per_s:,.0f} prompt tokens a second keep {prefill:.2f} prefill replicas of "
        f"{speed.prefill_tokens_per_s:,.0f} busy, {demand.decode_tokens_per_s:,.0f} generated ones {decode:.2f} decode replicas "
        f"of {speed.decode_tokens_per_s:,.0f}"
    )
    num_prefill = min(max(_ceil(prefill), spec.prefill.min_replicas), spec.max_prefill)
    num_decode = min(max(_ceil(decode), spec.decode.min_replicas), spec.max_decode)
    if num_prefill + num_decode >= spec.max_replicas:
        num_prefill = _divide(spec, prefill, decode, current)
        num_decode = spec.max_replicas - num_prefill
        asked += f"; only {spec.max_replicas} may run"
    return Roles(num_prefill=num_prefill, num_decode=num_decode, reason=asked)


def bounded(spec: RolesSpec, roles: Roles) -> Roles:
    """As many as there may be of what runs; where both roles together are too many, the larger one gives."""
    num_prefill = min(max(roles.num_prefill, spec.prefill.min_replicas), spec.max_prefill)
    num_decode = min(max(roles.num_decode, spec.decode.min_replicas), spec.max_decode)
    while num_prefill + num_decode > spec.max_replicas:
        if num_decode > spec.decode.min_replicas and (
            num_decode >= num_prefill or num_prefill == spec.prefill.min_replicas
        ):
            num_decode -= 1
        else:
            num_prefill -= 1
    return Roles(num_prefill=num_prefill, num_decode=num_decode, reason=roles.reason)


def _divide(spec: RolesSpec, prefill: float, decode: float, current: Roles | None) -> int:
    """The number of prefill replicas, of all that there may be, with which the busier role is least busy."""

    def busiest(count: int) -> float:
        return max(prefill / count, decode / (spec.max_replicas - count))

    choices = range(spec.max_replicas - spec.max_decode, spec.max_prefill + 1)
    best = min(choices, key=busiest)
    if current is None or current.total != spec.max_replicas or current.num_prefill not in choices:
        return best
    return current.num_prefill if busiest(current.num_prefill) <= _WORTH_MOVING * busiest(best) else best


def _row_s(step_time: StepTime, mean_context_tokens: float) -> float:
    return step_time.per_row_s + step_time.per_kv_s * mean_context_tokens


def _ceil(busy: float) -> int:
    return math.ceil(busy - _EXACT)
