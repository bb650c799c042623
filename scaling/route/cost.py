"""What a request would cost at each replica, given what of its prompt is cached where: the rule of both cache-aware policies."""

from __future__ import annotations

from collections.abc import Sequence

from sixfold.scaling.route.policy import Candidate, Choice, RequestShape


def cheapest(
    request: RequestShape, candidates: Sequence[Candidate], cached: Sequence[float], held: Sequence[int]
) -> Choice:
    """The candidate that has the least work to do before this request's first byte: its queue and the uncached part.

    So a cache attracts until the queue before it costs more than computing the prompt elsewhere, with no threshold to tune.

    Source: Dynamo's KV router, "prefill load minus overlap, plus decode load", with a credit of 1 a cached token.

    Args:
        request: What is asked.
        candidates: At least one.
        cached: Of each candidate, the share of the prompt that it holds, from 0 to 1.
        held: Of each candidate, how much it holds in all: among equals the emptiest, so that caches fill evenly.
    """

    def cost(index: int) -> tuple[float, float, int]:
        candidate = candidates[index]
        work = candidate.pending_units + request.prompt_units * (1.0 - cached[index])
        return work / candidate.weight, candidate.num_running / candidate.weight, held[index]

    best = min(range(len(candidates)), key=cost)
    reason = "cached" if cached[best] > 0.0 else "elsewhere" if any(cached) else "not_cached"
    return Choice(index=best, reason=reason, cached=cached[best])
