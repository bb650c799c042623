"""How long clients waited, told to the budget, which may hold an objective for it."""

from __future__ import annotations

from sixfold.core.batching.budget import ObjectiveKind, StepBudget
from sixfold.core.batching.entry import RequestState


def observe_output(budget: StepBudget, state: RequestState, now_s: float) -> None:
    """A part of an answer was made: the first counts from the request's arrival, others from the one before."""
    if state.first_output_s is None:
        state.first_output_s = now_s
        budget.observe_latency(ObjectiveKind.P95_TTFT_S, now_s - state.request.arrived_s)
    elif state.last_output_s is not None and now_s > state.last_output_s:
        budget.observe_latency(ObjectiveKind.P95_ITL_S, now_s - state.last_output_s)
    state.last_output_s = now_s


def observe_end(budget: StepBudget, state: RequestState, now_s: float) -> None:
    """The whole answer was made; where it had no parts, that is its first output, too."""
    if state.first_output_s is None:
        budget.observe_latency(ObjectiveKind.P95_TTFT_S, now_s - state.request.arrived_s)
    budget.observe_latency(ObjectiveKind.P95_LATENCY_S, now_s - state.request.arrived_s)
