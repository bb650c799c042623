"""What a run has shown: claims with their figures and goals, and the tables behind them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from census import SERVER, Census, grown
from kills import Kill, told_s
from ledger import End, Ledger, Row
from report import Claim

SEEN_GOAL_S = 1.0
GROWTH_GOAL = 0.05
"""Of the serving process's memory (about 70 MiB), in the second half over the first: it is never killed. What a process keeps
once (pools, caches, fragments of its heap) it keeps in the warm-up and the first half; a leak goes on as fast in the second. Both
growths are printed, so that one can be told from the other below this bound, too."""

TOTAL_GOAL = 0.10
"""Of the memory of all processes, from the baseline to the end: workers that took others' places hold less than old ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All that a run has seen.

    Attributes:
        censuses: Baseline, after the first half, after the second.
        num_left_behind: Processes that lived on after the server's end.
    """

    ledger: Ledger
    kills: Sequence[Kill]
    censuses: tuple[Census, Census, Census]
    num_left_behind: int


def claims_of(found: Found) -> list[Claim]:
    """Everything that must hold."""
    return [*_answers(found), *_deaths(found), *_leftovers(found)]


def _answers(found: Found) -> list[Claim]:
    rows = found.ledger.rows
    wrong = problems(found)
    unexplained = [
        row for row in rows if row.end is End.FAILED and not any(kill.covers(row) for kill in found.kills)
    ]  # fmt: skip
    good = [row for row in rows if row.modality != "abuse"]
    ends = Counter(row.end for row in good)
    return [
        Claim(
            claim="requests of six modalities with exactly one end, whole and as alone or with a clear error",
            figure=f"{len(good) - sum(row.modality != 'abuse' for row in wrong)} of {len(good)}"
            f" ({ends[End.ANSWERED]} answered, {ends[End.LEFT]} left by their clients, {ends[End.FAILED]} failed clearly,"
            f" {ends[End.REFUSED]} refused); {found.ledger.num_open} without end",
            goal="all",
            met=not any(row.modality != "abuse" for row in wrong) and not found.ledger.num_open,
        ),
        Claim(
            claim="malformed, torn and hostile requests that were refused clearly",
            figure=f"{len(rows) - len(good) - sum(row.modality == 'abuse' for row in wrong)} of {len(rows) - len(good)}",
            goal="all",
            met=not any(row.modality == "abuse" for row in wrong),
        ),
        Claim(
            claim="failures but for those of a killed worker's own requests",
            figure=str(len(unexplained)),
            goal="0",
            met=not unexplained,
        ),
        Claim(
            claim="answers with status 500, and failures of a step",
            figure=", ".join(f"{value:g} {name}" for name, value in found.censuses[2].totals.items()) or "0",
            goal="0",
            met=not any(found.censuses[2].totals.values()),
        ),
    ]


def _deaths(found: Found) -> list[Claim]:
    told = [seconds for kill in found.kills for seconds in told_s(kill, found.ledger.rows)]
    seen = [kill.seen_s for kill in found.kills]
    back = [kill.back_s for kill in found.kills if kill.back_s is not None]
    return [
        Claim(
            claim="a worker's death by SIGKILL is seen",
            figure=f"after at most {max(seen, default=0.0):.3f} s ({len(seen)} kills);"
            f" its {len(told)} waiting clients were told after at most {max(told, default=0.0):.3f} s",
            goal=f"{SEEN_GOAL_S:g} s",
            met=bool(seen) and max((*seen, *told)) < SEEN_GOAL_S,
        ),
        Claim(
            claim="killed workers that were replaced",
            figure=f"{len(back)} of {len(seen)}, after {min(back, default=0.0):.1f} to {max(back, default=0.0):.1f} s",
            goal="all",
            met=len(back) == len(seen),
        ),
    ]


def _leftovers(found: Found) -> list[Claim]:
    baseline, half, end = found.censuses
    held = [*grown(baseline, half), *grown(baseline, end)]
    grown_mib = end.processes[SERVER].pss_mib - half.processes[SERVER].pss_mib
    first_mib = half.processes[SERVER].pss_mib - baseline.processes[SERVER].pss_mib
    share = grown_mib / half.processes[SERVER].pss_mib
    total = end.pss_mib / baseline.pss_mib - 1.0
    return [
        Claim(
            claim="descriptors, threads, cache blocks and queues are back at the baseline, twice",
            figure="; ".join(held) or "all equal or below",
            goal="no more than before",
            met=not held,
        ),
        Claim(
            claim="memory of the serving process in the second half over the first",
            figure=f"{share:+.1%} ({grown_mib:+.1f} MiB, after {first_mib:+.1f} in the first)",
            goal=f"at most {GROWTH_GOAL:+.0%}",
            met=share <= GROWTH_GOAL,
        ),
        Claim(
            claim="memory of all processes at the end over the baseline",
            figure=f"{total:+.1%} ({baseline.pss_mib:,.0f} to {end.pss_mib:,.0f} MiB)",
            goal=f"at most {TOTAL_GOAL:+.0%}",
            met=total <= TOTAL_GOAL,
        ),
        Claim(
            claim="processes left behind after SIGTERM",
            figure=str(found.num_left_behind),
            goal="0",
            met=not found.num_left_behind,
        ),
    ]


def problems(found: Found) -> list[Row]:
    """Rows that are defects; a good request that was rejected is one, too."""
    return [
        row
        for row in found.ledger.rows
        if row.end is End.WRONG or (row.end is End.REJECTED and row.modality != "abuse")
    ]


def detail_lines(found: Found) -> list[str]:
    """Ends by modality, bystanders of kills, what processes hold, and each kind of defect."""
    return [
        *("", "## Ends", "", *_end_lines(found.ledger)),
        *("", "## Kills", "", *_kill_lines(found)),
        *("", "## What processes hold: baseline, after the first half, at the end", "", *_census_lines(found.censuses)),
        *("", "## Defects", "", *(_defect_lines(problems(found)) or ["none"])),
    ]


def _end_lines(ledger: Ledger) -> list[str]:
    counts = ledger.counts()
    lines = ["| | " + " | ".join(end.value for end in End) + " |", "|---" * (len(End) + 1) + "|"]
    for modality, ends in sorted(counts.items()):
        lines.append(f"| {modality} | " + " | ".join(str(ends[end.value]) for end in End) + " |")
    return lines


def _kill_lines(found: Found) -> list[str]:
    lines = ["| worker of | seen s | back s | clients told s | others' time over their usual | others' failures |"]
    lines.append("|---" * 6 + "|")
    for kill in found.kills:
        others = [row for row in found.ledger.rows if row.modality not in (kill.model, "abuse")]
        back_s = kill.back_s if kill.back_s is not None else 60.0
        beside = [row for row in others if kill.at_s <= row.began_s <= kill.at_s + back_s]
        failed = sum(row.end is End.FAILED and not any(each.covers(row) for each in found.kills) for row in beside)
        told = ", ".join(f"{seconds:.3f}" for seconds in told_s(kill, found.ledger.rows)) or "nobody waited"
        back = "never" if kill.back_s is None else f"{kill.back_s:.1f}"
        lines.append(f"| {kill.model} | {kill.seen_s:.3f} | {back} | {told} | {_slower(beside, others)} | {failed} |")
    return lines


def _slower(beside: Sequence[Row], others: Sequence[Row]) -> str:
    """The median over the modalities of how much longer their answers took than usual."""
    ratios: list[float] = []
    for modality in {row.modality for row in beside}:
        during, usual = (_median_s(rows, modality) for rows in (beside, others))
        if during is not None and usual is not None:
            ratios.append(during / usual)
    return f"{statistics.median(ratios):.2f}x" if ratios else "no answer in that time"


def _median_s(rows: Sequence[Row], modality: str) -> float | None:
    times_s = [
        row.ended_s - row.began_s
        for row in rows
        if row.modality == modality and row.end is End.ANSWERED and row.act.endswith("waits")
    ]
    return statistics.median(times_s) if times_s else None


def _census_lines(censuses: Sequence[Census]) -> list[str]:
    lines = ["| process | PSS MiB | RSS MiB | descriptors | threads |", "|---" * 5 + "|"]
    for role in dict.fromkeys(role for census in censuses for role in census.processes):
        each = [census.processes.get(role) for census in censuses]
        cells = [
            _cells([None if one is None else one.pss_mib for one in each]),
            _cells([None if one is None else one.rss_mib for one in each]),
            _cells([None if one is None else one.num_fds for one in each]),
            _cells([None if one is None else one.num_threads for one in each]),
        ]
        lines.append(f"| {role} | " + " | ".join(cells) + " |")
    return lines


def _cells(values: Sequence[float | None]) -> str:
    return ", ".join("none" if value is None else f"{value:,.0f}" for value in values)


def _defect_lines(rows: Sequence[Row]) -> list[str]:
    kinds: Mapping[tuple[str, str, str], int] = Counter(
        (row.modality, row.act, row.problem or f"rejected: {row.code}") for row in rows
    )
    return [f"- {count}x {modality}, {act}: {problem}" for (modality, act, problem), count in kinds.items()]
