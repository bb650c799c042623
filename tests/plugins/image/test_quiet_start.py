"""A start that works says nothing that a newcomer would have to look up."""

from __future__ import annotations

import subprocess
import sys

_START = """
from sixfold.core.telemetry.logs import configure_logging
configure_logging("info")
from transformers import SiglipImageProcessor
"""


def test_pictures_that_pillow_reads_are_nothing_to_warn_of() -> None:
    done = subprocess.run([sys.executable, "-c", _START], capture_output=True, text=True, check=True)
    assert "torchvision" not in done.stderr
