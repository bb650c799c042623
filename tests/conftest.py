"""What every test has: the servers' own words beside a failure, and after a hang where their threads are."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import settings

from tests.servers import RUNNING

# Kernels for GPUs run on the CPU here. Triton reads this when it is imported, whoever does so first.
os.environ.setdefault("TRITON_INTERPRET", "1")

# A run of CI draws the same examples as the one before it; runs by hand look further, as does `python -m tests.fuzz`.
# No example has a deadline: another process may have the processor meanwhile.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None, print_blob=True)
settings.register_profile("wandering", deadline=None)
settings.load_profile("repeatable" if os.environ.get("CI") else "wandering")

_LOG_TAIL = 4_000
_DUMP_TAIL = 40_000


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the end of each running server's log to a failed test's report."""
    report = yield
    if report.failed:
        hung = "Timeout (>" in str(report.longrepr)
        for server in RUNNING:
            if hung and server.process.poll() is None:
                server.dump_threads()
            report.sections.append((f"log of {server.config}", server.log[-(_DUMP_TAIL if hung else _LOG_TAIL) :]))
    return report
