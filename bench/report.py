"""Turns measurements into tables that keep losing results and never mix two runs."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run of one row in one round."""

    suite: str
    workload: str
    row: str
    dtype: str
    round: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One line of what a run was to show; ``met`` is None for what was not run."""

    claim: str
    figure: str
    goal: str
    met: bool | None


EMBEDDING_COLUMNS = {
    "requests_per_s": "requests/s",
    "texts_per_s": "texts/s",
    "tokens_per_s": "tokens/s",
    "p50_ms": "p50 ms",
    "p95_ms": "p95 ms",
    "other_load": "other load",
}
CHAT_COLUMNS = {
    "tokens_per_s": "tokens/s",
    "ttft_p50_ms": "TTFT p50 ms",
    "ttft_p95_ms": "TTFT p95 ms",
    "itl_p50_ms": "between tokens p50 ms",
    "itl_p95_ms": "p95 ms",
    "other_load": "other load",
}

SPEECH_COLUMNS = {
    "requests_per_s": "requests/s",
    "audio_s_per_s": "audio s/s",
    "p50_ms": "p50 ms",
    "p95_ms": "p95 ms",
    "clip_p50_ms": "clips p50 ms",
    "clip_p95_ms": "clips p95 ms",
    "other_load": "other load",
}


def table(
    samples: Sequence[Sample], columns: Mapping[str, str], ratios: Mapping[str, tuple[str, Callable[[Sample], bool]]]
) -> list[str]:
    """A markdown table of one workload.

    Args:
        columns: Value and heading; each cell is the median over the rounds.
        ratios: Heading to (value, base): the row's value over that of the first base sample of the same round.
    """
    lines = ["| " + " | ".join(["server", "weights", *columns.values(), *ratios]) + " |"]
    lines.append("|---" * (2 + len(columns) + len(ratios)) + "|")
    for row, dtype in dict.fromkeys((sample.row, sample.dtype) for sample in samples):
        mine = [sample for sample in samples if (sample.row, sample.dtype) == (row, dtype)]
        cells = [_number(statistics.median(sample.values[column] for sample in mine)) for column in columns]
        for column, is_base in ratios.values():
            quotients = [
                sample.values[column] / base.values[column]
                for sample in mine
                for base in samples
                if base.round == sample.round and is_base(base)
            ]
            cells.append(f"{statistics.median(quotients):.2f}" if quotients else "")
        lines.append("| " + " | ".join([row, dtype, *cells]) + " |")
    return lines


def claim_lines(claims: Sequence[Claim]) -> list[str]:
    """Claims as a table."""
    words = {True: "yes", False: "**no**", None: "not run"}
    rows = [f"| {each.claim} | {each.figure} | {each.goal} | {words[each.met]} |" for each in claims]
    return ["| claim | figure | goal | met |", "| --- | --- | --- | --- |", *rows]


def machine() -> dict[str, str]:
    """What a reader needs to judge the figures."""
    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )  # fmt: skip
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    packages = ("torch", "transformers", "sentence-transformers", "litserve")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
        "load_average_before": f"{os.getloadavg()[0]:.2f}",
    }


def write(
    folder: Path, facts: Mapping[str, object], samples: Sequence[Sample], lines: Sequence[str], *, name: str = "quick"
) -> Path:
    """Writes ``<date>T<time>-<name>.json`` and ``.md``, one pair a run; returns the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    started = datetime.datetime.fromisoformat(str(facts["date"]))
    stem = folder / f"{started:%Y-%m-%dT%H%M%S}-{name}"
    document = {"facts": dict(facts), "samples": [asdict(sample) for sample in samples]}
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    path = stem.with_suffix(".md")
    path.write_text("\n".join(lines) + "\n")
    return path


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
