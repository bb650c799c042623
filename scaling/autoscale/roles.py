"""How many replicas should prefill and how many decode, where the two are separate services."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sixfold.scaling.autoscale.step_time import StepTime


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
    reason: str


def role_speed(
    step_time: StepTime, *, mean_context_tokens: float, inter_token_s: float, max_step_tokens: int, max_rows: int
) -> RoleSpeed:
    """What a replica can do in each role, from its step time.

    Args:
        step_time: The engine's.
        mean_context_tokens: Mean length of a decoding sequence.
        inter_token_s: Promised time between two tokens.
        max_step_tokens: Largest prefill step.
        max_rows: Most sequences that decode together.

    Returns:
        Prefill in full steps; decode with as many rows as keep the time between two tokens, at least one.
    """
    # A prompt token attends to half of its prompt on average, and prompts are about as long as what decodes.
    prefill_s = step_time.seconds(
        prefill_tokens=max_step_tokens,
        decode_rows=0,
        kv_tokens=0,
        prefill_kv_tokens=max_step_tokens * mean_context_tokens / 2,
    )
    row_s = step_time.per_row_s + step_time.per_kv_s * mean_context_tokens
    rows = (inter_token_s - step_time.base_s) / row_s if row_s > 0.0 else math.inf
    rows = max(1.0, min(float(max_rows), math.floor(rows) if math.isfinite(rows) else float(max_rows)))
    return RoleSpeed(
        prefill_tokens_per_s=max_step_tokens / prefill_s,
        decode_tokens_per_s=rows / (step_time.base_s + rows * row_s),
    )


def size_roles(
    demand: RoleDemand, speed: RoleSpeed, *, utilization: float, max_replicas: int, current: Roles | None = None
) -> Roles:
    """Splits replicas over the roles so that both are equally busy.

    Args:
        demand: Measured or foreseen.
        speed: See `role_speed`.
        utilization: Share of the speed that is planned for.
        max_replicas: Of both roles together, at least 2; where they do not suffice, both roles are short by the same factor.
        current: What runs. It stays where it suffices and is at most one replica in each role too many, since a change of
            role costs a start.

    Raises:
        ValueError: Fewer than two replicas: each role needs one.
    """
    if max_replicas < 2:
        raise ValueError(f"max_replicas is {max_replicas}: prefill and decode need a replica each. Allow at least 2.")
    prefill = demand.prefill_tokens_per_s / (speed.prefill_tokens_per_s * utilization)
    decode = demand.decode_tokens_per_s / (speed.decode_tokens_per_s * utilization)
    asked = f"prefill keeps {prefill:.2f} replicas busy, decode {decode:.2f}"
    num_prefill, num_decode = max(1, math.ceil(prefill - 1e-9)), max(1, math.ceil(decode - 1e-9))
    if num_prefill + num_decode > max_replicas:
        num_prefill = _split(prefill, decode, max_replicas)
        num_decode = max_replicas - num_prefill
        return Roles(num_prefill=num_prefill, num_decode=num_decode, reason=f"{asked}; only {max_replicas} may run")
    if current is not None and current.num_prefill + current.num_decode <= max_replicas:
        spare = (current.num_prefill - num_prefill, current.num_decode - num_decode)
        if all(0 <= each <= 1 for each in spare):
            return Roles(num_prefill=current.num_prefill, num_decode=current.num_decode, reason=f"{asked}; kept")
    return Roles(num_prefill=num_prefill, num_decode=num_decode, reason=asked)


def _split(prefill: float, decode: float, total: int) -> int:
    """The number of prefill replicas with which the busier role is least busy."""
    return min(range(1, total), key=lambda count: max(prefill / count, decode / (total - count)))
