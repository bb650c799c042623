"""The measurement of the host's step finds its parts: they are watched by name, and names change."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(["--ahead"], id="parts"),
        pytest.param(["--ahead", "--whole"], id="whole", marks=pytest.mark.slow),
        pytest.param(["--watch"], id="watched", marks=pytest.mark.slow),
    ],
)
def test_it_measures(how: list[str]) -> None:
    command = [sys.executable, str(BENCH / "host_step.py"), "--rows", "4", "--prompt", "8", "--output", "8", *how]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert "4 streams" in found.stdout and "32 tokens" in found.stdout
    parts = {line.split("  ")[0].strip() for line in found.stdout.splitlines()[1:]}
    wanted = {"loop", "device_thread", "process"}
    if "--whole" not in how:
        wanted |= {"select", "lay out", "take tokens", "settle, rest", "detokenize", "sample"}
    assert wanted <= parts
