"""Attributes of spans by OpenTelemetry's conventions for generative AI; what these have no name for begins with ``sixfold.``.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sixfold.core.messages import Finished, ReplicaTrace, StepGroup
from sixfold.core.telemetry.names import TraceNames

_USAGE = {
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
}


def request_attributes(names: TraceNames, operation: str, model: str, replica: int) -> dict[str, str | int]:
    """Of the span of one piece of work at a replica, as it begins."""
    return {
        "gen_ai.operation.name": names.operations.get(operation, operation),
        "gen_ai.provider.name": "sixfold",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "sixfold.replica": replica,
    }


def result_attributes(event: Finished[Any], ttft_s: float | None) -> Mapping[str, int | float | tuple[str, ...]]:
    """Of the same span, when it has succeeded."""
    found: dict[str, int | float | tuple[str, ...]] = {
        _USAGE.get(name, f"sixfold.usage.{name}"): count for name, count in event.usage.counts.items()
    }
    found["gen_ai.response.finish_reasons"] = (event.finish_reason,)
    if ttft_s is not None:
        found["gen_ai.server.time_to_first_token"] = ttft_s
    return found


def replica_attributes(trace: ReplicaTrace) -> dict[str, int]:
    """Of the same span, about the worker."""
    return {
        "process.pid": trace.process_id,
        "sixfold.num_steps": sum(group.num_steps for group in trace.steps),
        "sixfold.max_batch_sequences": max((group.max_batch_sequences for group in trace.steps), default=0),
        "sixfold.num_preemptions": trace.num_preemptions,
    }


def step_attributes(group: StepGroup) -> dict[str, int | float]:
    """Of an event that stands for one step, or for neighbouring ones."""
    return {
        "sixfold.num_steps": group.num_steps,
        "sixfold.step_units": group.units,
        "sixfold.max_batch_sequences": group.max_batch_sequences,
        "sixfold.seconds": group.ended_s - group.began_s,
    }
