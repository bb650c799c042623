"""From outcomes to what is worth knowing: percentiles, throughput, goodput under an objective, and failures by their kind."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from sixfold.core.benchmark.outcome import Outcome
from sixfold.core.benchmark.slo import Slo

QUANTILES = (0.5, 0.9, 0.95, 0.99)


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """How one figure is distributed, in seconds."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None of no values."""
        if not values:
            return None
        ordered = sorted(values)
        quantiles = {f"p{round(share * 100)}": percentile(ordered, share) for share in QUANTILES}
        return cls(mean=sum(ordered) / len(ordered), max=ordered[-1], **quantiles)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of rising values: the first that at least this share of all does not exceed."""
    return ordered[max(1, math.ceil(share * len(ordered))) - 1]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One run at one server.

    Attributes:
        num_requests: All.
        num_failed: Those that failed.
        errors: The same by their kind: ``http_429``, ``timeout``, ``refused``, ``connection_lost``, ``torn_stream``, ...
        seconds: From the first due request to the last end.
        requests_per_s: That succeeded.
        good_per_s: That kept the objective as well; None without one.
        good_share: Their share of all, failed ones included.
        input_tokens_per_s: As counted by the server; None where it counts none.
        output_tokens_per_s: The same.
        ttft_s: From due to the first part of the answer.
        itl_s: Between parts of an answer, of all answers together.
        tpot_s: For each output token after the first, by request.
        e2e_s: From due to the end.
        late_s: From due to sent: what the generator was late by. Large values say that the machine of the generator is too slow.
    """

    num_requests: int
    num_failed: int
    errors: dict[str, int]
    seconds: float
    requests_per_s: float
    good_per_s: float | None
    good_share: float | None
    input_tokens_per_s: float | None
    output_tokens_per_s: float | None
    ttft_s: Spread | None
    itl_s: Spread | None
    tpot_s: Spread | None
    e2e_s: Spread | None
    late_s: Spread | None


def summarize(outcomes: Sequence[Outcome], slo: Slo | None) -> Summary:
    """The figures of one run; latencies are of the requests that succeeded."""
    succeeded = [outcome for outcome in outcomes if outcome.error is None]
    errors = Counter(outcome.error for outcome in outcomes if outcome.error is not None)
    began_s = min((outcome.due_s for outcome in outcomes), default=0.0)
    seconds = max((outcome.ended_s for outcome in outcomes), default=0.0) - began_s
    num_good = None if slo is None else sum(map(slo.kept, outcomes))

    def rate(count: float | None) -> float | None:
        return None if count is None or seconds <= 0 else count / seconds

    return Summary(
        num_requests=len(outcomes),
        num_failed=len(outcomes) - len(succeeded),
        errors=dict(sorted(errors.items())),
        seconds=seconds,
        requests_per_s=rate(len(succeeded)) or 0.0,
        good_per_s=rate(num_good),
        good_share=None if num_good is None or not outcomes else num_good / len(outcomes),
        input_tokens_per_s=rate(_total([outcome.num_input_tokens for outcome in succeeded])),
        output_tokens_per_s=rate(_total([outcome.num_output_tokens for outcome in succeeded])),
        ttft_s=Spread.of([outcome.ttft_s for outcome in succeeded if outcome.ttft_s is not None]),
        itl_s=Spread.of([gap_s for outcome in succeeded for gap_s in outcome.gaps_s]),
        tpot_s=Spread.of([outcome.tpot_s for outcome in succeeded if outcome.tpot_s is not None]),
        e2e_s=Spread.of([outcome.e2e_s for outcome in succeeded]),
        late_s=Spread.of([outcome.sent_s - outcome.due_s for outcome in outcomes]),
    )


def _total(counts: Sequence[int | None]) -> int | None:
    found = [count for count in counts if count is not None]
    return sum(found) if found else None


def figures(summary: Summary) -> Mapping[str, float]:
    """What two servers are compared by."""
    spreads = {"TTFT": summary.ttft_s, "ITL": summary.itl_s, "E2E": summary.e2e_s}
    found = {"requests/s": summary.requests_per_s}
    for name, value in (("good requests/s", summary.good_per_s), ("output tokens/s", summary.output_tokens_per_s)):
        if value is not None:
            found[name] = value
    for name, spread in spreads.items():
        if spread is not None:
            found |= {f"{name} p50": spread.p50, f"{name} p95": spread.p95}
    return found


def ratios(first: Sequence[Summary], second: Sequence[Summary]) -> dict[str, list[float]]:
    """Second over first by figure, a value for each round: machines drift between rounds, seldom within one."""
    found: dict[str, list[float]] = {}
    for one, other in zip(first, second, strict=True):
        ours, theirs = figures(one), figures(other)
        for name in ours.keys() & theirs.keys():
            if ours[name] > 0:
                found.setdefault(name, []).append(theirs[name] / ours[name])
    return {name: found[name] for name in figures(first[0]) if name in found} if first else {}
