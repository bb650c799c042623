"""``sixfold simulate``: what a way of scaling would have cost, and which promises it would have kept."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sixfold.core.hookspecs import Command

if TYPE_CHECKING:
    from sixfold.scaling.sim.experiment import Frontier
    from sixfold.scaling.sim.outcome import Summary


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sixfold simulate``."""
    parser.add_argument("config", type=Path, help="YAML file with 'trace:', 'replica:', 'scaling:' and 'slo:'")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the result into this SVG, PNG or PDF file")
    parser.add_argument("--json", action="store_true", help="print JSON, times in seconds")
    parser.add_argument(
        "--availability",
        action="store_true",
        help="compute a failure model ('availability:' in the file) instead; exit status 1 where it misses its objective",
    )
    parser.add_argument("--decisions", action="store_true", help="list each decision of the autoscaler with its reason")


def run(args: argparse.Namespace) -> int:
    """Simulates and prints.

    Raises:
        ConfigError: The configuration, the trace or the plot's file is wrong.
    """
    if args.availability:
        from sixfold.scaling.sim.availability_report import report

        lines, kept = report(args.config)
        print("\n".join(lines))
        return 0 if kept else 1
    from sixfold.scaling.sim.experiment import Frontier, compare, make_trace, simulate  # numpy is not for every command
    from sixfold.scaling.sim.settings import load_simulation

    settings = load_simulation(args.config)
    trace = make_trace(settings)
    if settings.static_fleets:
        frontier = compare(settings, trace, lambda line: print(f"simulating: {line}", file=sys.stderr))
    else:
        frontier = Frontier(scaled=simulate(settings, trace), static={}, equal=None)
    print(frontier_json(frontier) if args.json else "\n".join(frontier_lines(frontier)))
    if args.decisions:
        for at_s, site, count, reason in frontier.scaled.history.decisions:
            print(f"{at_s:9.0f} s  {site}: {count} replicas: {reason}")
    if args.plot is not None:
        from sixfold.scaling.sim.plot import draw

        draw(frontier, args.plot, f"{settings.trace.path.name}: {len(trace)} requests")
        print(f"drawn: {args.plot}", file=sys.stderr)
    return 0


def frontier_lines(frontier: Frontier) -> list[str]:
    """The result as text: a row for each fleet, then the comparison."""
    header = ("FLEET", "GPU-HOURS", "IN OBJECTIVE", "ANSWERED", "TTFT P50", "P95", "P99", "E2E P95", "P99", "CACHED")
    rows = [header, _row("autoscaled", frontier.scaled.summary)]
    rows += [_row(f"{size} fixed", summary) for size, summary in frontier.static.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    scaled = frontier.scaled.summary
    lines += [
        "",
        f"{scaled.num_requests} requests in {scaled.duration_s / 3600:.2f} h; autoscaled: {scaled.mean_replicas:.1f} replicas in "
        f"the mean, {scaled.max_replicas} at most, {len(frontier.scaled.history.decisions)} changes",
    ]
    if frontier.equal is not None and frontier.saved_share is not None:
        word = "fewer" if frontier.saved_share >= 0 else "more"
        lines.append(
            f"The smallest fixed fleet that keeps the objective as often has {frontier.equal} replicas a site: the autoscaler "
            f"takes {abs(frontier.saved_share):.1%} {word} GPU-hours."
        )
    elif frontier.static:
        lines.append("No fixed fleet that was tried keeps the objective as often.")
    return lines


def _row(name: str, summary: Summary) -> tuple[str, ...]:
    def seconds(value_s: float) -> str:
        return "-" if math.isnan(value_s) else f"{value_s:.3f} s"

    return (
        name,
        f"{summary.gpu_hours:.2f}",
        f"{summary.attainment:.2%}",
        f"{summary.availability:.3%}",
        seconds(summary.ttft.p50_s),
        seconds(summary.ttft.p95_s),
        seconds(summary.ttft.p99_s),
        seconds(summary.e2e.p95_s),
        seconds(summary.e2e.p99_s),
        f"{summary.cached_share:.1%}",
    )


def frontier_json(frontier: Frontier) -> str:
    """The result for machines; a time that nothing had is null."""
    data = {
        "autoscaled": frontier.scaled.summary,
        "static": {str(size): summary for size, summary in frontier.static.items()},
        "equal_static": frontier.equal,
        "saved_share": frontier.saved_share,
    }
    return msgspec.json.format(msgspec.json.encode(data), indent=2).decode()


COMMAND = Command(
    name="simulate",
    summary="Replay a trace of requests through a simulated fleet: cost, kept objectives, availability.",
    configure=configure,
    run=run,
)
"""For the plugin."""
