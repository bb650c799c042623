"""vLLM's own counts under this project's names; shared by the process that declares them and the one that counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sixfold.core.family import MetricKind, MetricSpec

_COUNTER, _GAUGE = MetricKind.COUNTER, MetricKind.GAUGE

METRICS = (
    MetricSpec(name="prompt_tokens_total", kind=_COUNTER, help="Prompt tokens of requests that have begun."),
    MetricSpec(name="generation_tokens_total", kind=_COUNTER, help="Tokens generated."),
    MetricSpec(name="kv_cache_usage_perc", kind=_GAUGE, help="Share of cache blocks in use, 0 to 1."),
    MetricSpec(name="kv_blocks_total", kind=_GAUGE, help="Cache blocks that sequences can hold in all."),
    MetricSpec(name="prefix_cache_queries_total", kind=_COUNTER, help="Prompt tokens looked up in the prefix cache."),
    MetricSpec(name="prefix_cache_hits_total", kind=_COUNTER, help="Prompt tokens found in the prefix cache."),
    MetricSpec(name="engine_requests_running", kind=_GAUGE, help="Sequences in the engine's running batch."),
    MetricSpec(name="engine_requests_waiting", kind=_GAUGE, help="Sequences that wait inside the engine."),
    MetricSpec(name="engine_preemptions_total", kind=_COUNTER, help="Sequences whose cache the engine took away."),
    MetricSpec(name="spec_decode_draft_tokens_total", kind=_COUNTER, help="Tokens drafted by speculation."),
    MetricSpec(name="spec_decode_accepted_tokens_total", kind=_COUNTER, help="Drafted tokens that were accepted."),
    MetricSpec(name="dormant", kind=_GAUGE, help="1 while the model sleeps and its GPU's memory is free for others."),
)


class EngineCounts:
    """Sums what the engine reports after each step. Written in the engine's loop, read anywhere."""

    def __init__(self) -> None:
        self._totals: Counter[str] = Counter()
        self._gauges: dict[int, tuple[int, int, float]] = {}  # by rank: running, waiting, share of the cache

    def record(self, scheduler: Any, iteration: Any, rank: int) -> None:
        """Takes the reports of one step.

        Args:
            scheduler: A ``SchedulerStats``, or None. Neither type is a stable interface of vLLM: what a version lacks
                counts as nothing.
            iteration: An ``IterationStats``, or None.
            rank: Of the engine among its copies.
        """
        totals = self._totals
        if iteration is not None:
            totals["prompt_tokens_total"] += iteration.num_prompt_tokens
            totals["generation_tokens_total"] += iteration.num_generation_tokens
            totals["engine_preemptions_total"] += iteration.num_preempted_reqs
        if scheduler is None:
            return
        self._gauges[rank] = (
            scheduler.num_running_reqs,
            scheduler.num_waiting_reqs + getattr(scheduler, "num_skipped_waiting_reqs", 0),
            scheduler.kv_cache_usage,
        )
        prefix = scheduler.prefix_cache_stats
        totals["prefix_cache_queries_total"] += prefix.queries
        totals["prefix_cache_hits_total"] += prefix.hits
        drafts = scheduler.spec_decoding_stats
        if drafts is not None:
            totals["spec_decode_draft_tokens_total"] += drafts.num_draft_tokens
            totals["spec_decode_accepted_tokens_total"] += drafts.num_accepted_tokens

    def stats(self, *, idle: bool = False) -> Mapping[str, float]:
        """The values of `METRICS` but for ``kv_blocks_total`` and ``dormant``.

        Args:
            idle: No request is inside: the engine reports with its steps only, so it never says that the last was aborted.
        """
        gauges = [] if idle else list(self._gauges.values())
        return {spec.name: self._totals[spec.name] for spec in METRICS if spec.kind is _COUNTER} | {
            "engine_requests_running": sum(running for running, _, _ in gauges),
            "engine_requests_waiting": sum(waiting for _, waiting, _ in gauges),
            "kv_cache_usage_perc": sum(usage for _, _, usage in gauges) / max(1, len(gauges)),
        }
