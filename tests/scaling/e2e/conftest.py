"""What the tests of real processes share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scaling.e2e.processes import Processes


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    running = Processes(tmp_path)
    yield running
    running.end_all()
