"""Holds a live server of all six modalities to its own OpenAPI document, by schemathesis: each route, and what follows on it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from tests.e2e.conftest import shipped_demo
from tests.fuzz.media_targets import sound
from tests.fuzz.report import Found, Part
from tests.servers import DemoServer, start_server, stop_server

ROOT = Path(__file__).resolve().parents[2]

_CHECKS = (
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "use_after_free",
    "ensure_resource_availability",
)
_REQUEST_S = 60.0
"""An answer that takes longer is a finding: everything asked for is small."""
_GRACE_S = 180.0
_DECLARED = frozenset(("503", "504", "507"))
"""Server errors that are no defects: not now, not within the deadline that was asked for, no room."""
MAX_GROWTH_MIB = 300.0
"""Of the server and its workers, in the second half: caches of prefixes and of files fill up, and a worker keeps what its largest
request so far took. The one for clips grew from 587 to 1,082 MiB in 140 s, and not at all in 60 s more."""


def explore_api(seconds: float, folder: Path) -> Part:
    """Asks for so many seconds.

    Args:
        seconds: For the requests; the server's start comes on top.
        folder: For schemathesis' reports and the server's log.
    """
    with TemporaryDirectory() as data:
        config = folder / "server.yaml"
        settings = shipped_demo()
        settings["server"]["data_dir"] = data
        config.write_text(yaml.safe_dump(settings))
        server = start_server(config)
        try:
            return _explore(server, seconds, folder)
        finally:
            stop_server(server)


def _explore(server: DemoServer, seconds: float, folder: Path) -> Part:
    recording = folder / "sound.wav"
    recording.write_bytes(sound("wav", "pcm_s16le"))
    output = run_schemathesis(server.url, seconds / 2, folder, figures=folder / "warm.json", recording=recording)
    before_mib = tree_mib(server.process.pid)
    figures = folder / "figures.json"
    output += run_schemathesis(server.url, seconds / 2, folder, figures=figures, recording=recording)
    growth_mib = max(0.0, tree_mib(server.process.pid) - before_mib)
    counted, warm = _counted(figures), _counted(folder / "warm.json")
    findings = [Found(what=each, kept=str(folder)) for each in failures(output)]
    undeclared = {
        f"{operation}: {status}"
        for told in (counted, warm)
        for operation, statuses in told.get("errors", {}).items()
        for status in statuses
        if status not in _DECLARED
    }
    findings += [Found(what=f"{each} is no declared status") for each in sorted(undeclared)]
    if server.process.poll() is not None:
        findings.append(Found(what="the server ended", kept=str(folder / "server.log")))
    if growth_mib > MAX_GROWTH_MIB:
        findings.append(Found(what=f"the server grew by {growth_mib:.0f} MiB"))
    defects = server.log.count("Traceback (most recent call last)")
    if defects:
        findings.append(Found(what=f"{defects} defects in the server's log", kept=str(folder / "server.log")))
    statuses: dict[str, int] = counted.get("statuses", {})
    return Part(
        name="api",
        cases=sum(statuses.values()),
        seconds=seconds,
        taken=sum(counted.get("good", {}).values()),
        slowest_s=round(max(counted.get("slowest", {}).values(), default=0.0), 3),
        rss_growth_mib=round(growth_mib, 1),
        server_errors=len(undeclared),
        findings=tuple(findings),
    )


def run_schemathesis(url: str, seconds: float, folder: Path, *, figures: Path, recording: Path) -> str:
    """What schemathesis prints; its reports are in the folder."""
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        *("run", f"{url}/openapi.json", f"--checks={','.join(_CHECKS)}"),
        *(f"--max-time={max(1, int(seconds))}", "--continue-on-failure", "--workers=2", "--no-shrink"),
        *("--warnings=off", "--suppress-health-check=all", f"--request-timeout={_REQUEST_S}"),
        *("--exclude-path=/v1/realtime", "--exclude-path=/live"),  # a socket, and a stream without an end
    ]
    environment = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": "tests.fuzz.api_hooks",
        "SIXFOLD_FUZZ_FIGURES": str(figures),
        "SIXFOLD_FUZZ_SOUND": str(recording),
        "PYTHONPATH": str(ROOT),
    }
    report = folder / f"schemathesis-{figures.stem}.txt"
    with report.open("w") as out:
        try:
            subprocess.run(
                command, cwd=folder, env=environment, stdout=out, stderr=out, timeout=seconds + _GRACE_S, check=False
            )
        except subprocess.TimeoutExpired:
            out.write("\n- it did not come to its end: a request hung\n")
    return report.read_text()


def failures(output: str) -> list[str]:
    """What schemathesis found: ``OPERATION: failure`` once each."""
    found: dict[str, None] = {}
    operation = ""
    for line in re.sub(r"\x1b\[[0-9;]*m", "", output).splitlines():
        heading = re.fullmatch(r"_{3,} (.+?) _{3,}", line.strip())
        if heading:
            operation = heading[1]
        elif line.startswith("- "):
            found.setdefault(f"{operation}: {line[2:].strip()}")
    return list(found)


def tree_mib(pid: int) -> float:
    """Memory of a process and all below it."""
    pids, total_kib = [pid], 0
    while pids:
        each = pids.pop()
        try:
            total_kib += int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{each}/status").read_text())[0])
            for task in Path(f"/proc/{each}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
        except (OSError, IndexError):
            continue  # it has ended
    return total_kib / 1024


def _counted(figures: Path) -> dict[str, Any]:
    return json.loads(figures.read_text()) if figures.exists() else {}
