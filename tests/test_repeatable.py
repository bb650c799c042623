"""What a run of CI says must not depend on chance."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_in_ci_hypothesis_draws_the_same_examples_in_every_run() -> None:
    code = "import tests.conftest; from hypothesis import settings; print(settings.default.derandomize)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CI": "true"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "True"
