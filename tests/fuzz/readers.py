"""Runs the readers of foreign bytes under atheris, group by group, and gathers what came of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from tests.fuzz.report import Found, Part, Progress
from tests.fuzz.targets import GROUPS, targets_of

ROOT = Path(__file__).resolve().parents[2]

MAX_GROWTH_MIB = 64.0
"""Of a reader's process, over thousands of inputs: the fuzzer's own corpus and counters are in it."""
_GRACE_S = 120.0
"""For importing a group, and for readers that take their last input's time."""
_EACH_GRACE_S = 15.0
"""For a reader's seeds, whose code is watched and so slow."""
_EDGES = re.compile(r"\bcov: (\d+)")


def explore_readers(seconds: float, folder: Path, only: Sequence[str] = ()) -> Iterator[Part]:
    """Yields the part of each reader, as its group is done.

    Args:
        seconds: For all of them together.
        folder: An empty one, for findings and logs.
        only: Names of groups or readers; all unless given.
    """
    groups = {group: [t.name for t in targets_of(group) if _wanted(group, t.name, only)] for group in GROUPS}
    num_readers = sum(map(len, groups.values()))
    each_s = max(1, int(seconds / max(1, num_readers)))
    for group, names in groups.items():
        if names:
            _run_group(group, names, folder, each_s)
            yield from (_part(name, folder / name, each_s) for name in names)


def _wanted(group: str, name: str, only: Sequence[str]) -> bool:
    return not only or group in only or name in only


def _run_group(group: str, names: Sequence[str], folder: Path, each_s: int) -> None:
    command = [sys.executable, "-m", "tests.fuzz.explore", group, str(folder), str(each_s), *names]
    with (folder / f"{group}.log").open("w") as log:
        # A session of its own: what hangs is ended with all that it has begun.
        child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            child.wait(timeout=len(names) * (each_s + _EACH_GRACE_S) + _GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _part(name: str, folder: Path, seconds: float) -> Part:
    try:
        progress = msgspec.json.decode((folder / "progress.json").read_bytes(), type=Progress)
    except (OSError, ValueError):
        why = f"it did not begin; see {folder.parent}"
        return Part(name=name, cases=0, seconds=0.0, slowest_s=0.0, rss_growth_mib=0.0, findings=(Found(what=why),))
    findings = list(progress.findings)
    for kept in folder.glob("*-*"):
        kind = kept.name.partition("-")[0]
        if kind in ("timeout", "oom", "crash", "leak"):
            findings.append(Found(what=f"{kind}: libFuzzer ended it", kept=str(kept)))
    status = folder / "status"
    if not findings and (not status.exists() or status.read_text() != "0"):
        how = status.read_text() if status.exists() else "killed"
        findings.append(Found(what=f"its process ended with {how}", kept=str(folder / "log")))
    growth = max(0.0, progress.rss_mib - progress.rss_before_mib)
    if growth > MAX_GROWTH_MIB:
        findings.append(Found(what=f"its process grew by {growth:.0f} MiB, at most {MAX_GROWTH_MIB:.0f} are usual"))
    edges = _EDGES.findall((folder / "log").read_text(errors="replace"))
    return Part(
        name=name,
        cases=progress.cases,
        seconds=seconds,
        taken=progress.taken,
        edges=int(edges[-1]) if edges else None,
        slowest_s=round(progress.slowest_s, 3),
        rss_growth_mib=round(growth, 1),
        findings=tuple(findings),
    )
