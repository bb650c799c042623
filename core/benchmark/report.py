"""The text and the JSON of one call of ``sixfold bench``."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import msgspec

from sixfold.core.benchmark.session import Measured
from sixfold.core.benchmark.slo import Slo
from sixfold.core.benchmark.summary import Spread, Summary, ratios, summarize
from sixfold.core.cli.listing import table

_LATE_S = 0.05


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What ``--json`` writes.

    Attributes:
        settings: What was asked, by the names of the options.
        servers: Of each address, all rounds together.
        rounds: Of each address, one by one.
        ratios: Second over first server by figure, a value a round; empty with one server.
    """

    settings: dict[str, str | int | float | None]
    servers: dict[str, Summary]
    rounds: dict[str, list[Summary]]
    ratios: dict[str, list[float]]


def make_report(
    settings: Mapping[str, str | int | float | None], measured: Mapping[str, Measured], slo: Slo | None
) -> Report:
    """Sums up one or two servers; the time of all rounds is what they took together, without the pauses between."""
    rounds = {url: [summarize(each, slo) for each in of.rounds] for url, of in measured.items()}
    servers: dict[str, Summary] = {}
    for url, of in measured.items():
        whole, seconds = summarize(of.outcomes, slo), sum(each.seconds for each in rounds[url])
        scale = whole.seconds / seconds if seconds else 0.0
        servers[url] = msgspec.structs.replace(
            whole,
            seconds=seconds,
            requests_per_s=whole.requests_per_s * scale,
            good_per_s=None if whole.good_per_s is None else whole.good_per_s * scale,
            input_tokens_per_s=None if whole.input_tokens_per_s is None else whole.input_tokens_per_s * scale,
            output_tokens_per_s=None if whole.output_tokens_per_s is None else whole.output_tokens_per_s * scale,
        )
    both = list(rounds.values())
    return Report(
        settings=dict(settings),
        servers=servers,
        rounds=rounds,
        ratios=ratios(both[0], both[1]) if len(both) == 2 else {},
    )


def report_lines(report: Report) -> list[str]:
    """For people."""
    lines: list[str] = []
    for url, summary in report.servers.items():
        lines += [url, *(f"  {line}" for line in _server_lines(summary)), ""]
    if report.ratios:
        first, second = report.servers
        lines.append(f"{second} over {first}, by round (latencies: below 1 is better; rates: above 1 is)")
        rows = [
            [name, f"{statistics.median(values):.3f}", f"{min(values):.3f} to {max(values):.3f}"]
            for name, values in report.ratios.items()
        ]
        lines += [f"  {line}" for line in table(("FIGURE", "MEDIAN", "ROUNDS"), rows)]
    return lines


def _server_lines(summary: Summary) -> list[str]:
    failed = ", ".join(f"{count} {kind}" for kind, count in summary.errors.items()) or "none"
    rates = [f"{summary.requests_per_s:.2f} requests/s"]
    for name, value in (("input", summary.input_tokens_per_s), ("output", summary.output_tokens_per_s)):
        if value is not None:
            rates.append(f"{value:,.1f} {name} tokens/s")
    lines = [f"{summary.num_requests} requests in {summary.seconds:.1f} s, failed: {failed}", ", ".join(rates)]
    if summary.good_per_s is not None and summary.good_share is not None:
        lines.append(f"goodput {summary.good_per_s:.2f} requests/s ({summary.good_share:.1%} kept the objective)")
    spreads = {"TTFT": summary.ttft_s, "ITL": summary.itl_s, "TPOT": summary.tpot_s, "E2E": summary.e2e_s}
    rows = [[name, *_cells(spread)] for name, spread in spreads.items() if spread is not None]
    if rows:
        lines += table(("SECONDS", "MEAN", "P50", "P90", "P95", "P99", "MAX"), rows)
    if summary.late_s is not None and summary.late_s.p95 > _LATE_S:
        lines.append(
            f"Requests left {summary.late_s.p95:.3f} s late (p95): the generator's machine is too slow for this load; "
            "latencies include it."
        )
    return lines


def _cells(spread: Spread) -> Sequence[str]:
    return [f"{value:.4f}" for value in (spread.mean, spread.p50, spread.p90, spread.p95, spread.p99, spread.max)]
