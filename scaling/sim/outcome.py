"""What a simulation comes to: times, promises kept, requests answered, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sixfold.scaling.sim.request import Job, Outcome
from sixfold.scaling.sim.simulation import History
from sixfold.scaling.spec import Slo


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Percentiles of a time, in seconds; NaN where nothing was answered."""

    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of one run.

    Attributes:
        num_requests: All that arrived.
        availability: Share of them that was answered.
        attainment: Share of them that was answered within the objective.
        ttft: To the first token at the client, of answered requests.
        e2e: To the last.
        gpu_hours: Of all replicas from their order to their end, times their GPUs.
        mean_replicas: Over the run.
        max_replicas: At any tick.
        cached_share: Of the prompt tokens, those that a cache held.
        duration_s: Until the last request ended.
    """

    num_requests: int
    availability: float
    attainment: float
    ttft: Times
    e2e: Times
    gpu_hours: float
    mean_replicas: float
    max_replicas: int
    cached_share: float
    duration_s: float


def summarize(history: History, slo: Slo, num_gpus: float) -> Summary:
    """The figures of a finished simulation; ``num_gpus`` is what one replica has."""
    jobs = history.jobs
    answered = [job for job in jobs if job.outcome is Outcome.ANSWERED]
    replica_s = sum(history.replica_seconds.values())
    prompt_tokens = sum(job.request.prompt_tokens for job in answered)
    return Summary(
        num_requests=len(jobs),
        availability=len(answered) / len(jobs),
        attainment=sum(keeps(job, slo) for job in answered) / len(jobs),
        ttft=_times([job.ttft_s for job in answered if job.ttft_s is not None]),
        e2e=_times([job.e2e_s for job in answered if job.e2e_s is not None]),
        gpu_hours=replica_s * num_gpus / 3600,
        mean_replicas=replica_s / history.end_s if history.end_s else 0.0,
        max_replicas=max((moment.num_replicas for moment in history.moments), default=0),
        cached_share=sum(job.cached_tokens for job in answered) / prompt_tokens if prompt_tokens else 0.0,
        duration_s=history.end_s,
    )


def keeps(job: Job, slo: Slo) -> bool:
    """Whether an answered request kept its promised times."""
    if job.ttft_s is None or job.e2e_s is None:
        return False
    return (slo.ttft_s is None or job.ttft_s <= slo.ttft_s) and (slo.e2e_s is None or job.e2e_s <= slo.e2e_s)


def _times(values_s: Sequence[float]) -> Times:
    if not values_s:
        return Times(mean_s=math.nan, p50_s=math.nan, p95_s=math.nan, p99_s=math.nan)
    ordered = sorted(values_s)

    def at(share: float) -> float:
        """The nearest rank."""
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return Times(mean_s=sum(ordered) / len(ordered), p50_s=at(0.5), p95_s=at(0.95), p99_s=at(0.99))
