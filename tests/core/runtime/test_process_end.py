from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sixfold.core.runtime.process_end import is_ending


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_process_that_lives_is_not_ending(child: subprocess.Popen[bytes]) -> None:
    assert not is_ending(child.pid)


def test_a_process_that_was_killed_is_ending_until_it_was_waited_for(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_ending(child.pid)
    assert child.wait() == -signal.SIGKILL
    assert not is_ending(child.pid)


@pytest.mark.parametrize(
    ("stat", "expected"),
    [
        pytest.param("7 (sixfold) S 1 7 7 0 -1 4194304 0", False, id="sleeps"),
        pytest.param("7 (sixfold) R 1 7 7 0 -1 4194308 0", True, id="gives-its-memory-back"),
        pytest.param("7 (sixfold) Z 1 7 7 0 -1 4194304 0", True, id="gone-but-for-other-threads"),
        pytest.param("7 (a) Z (b) S 1 7 7 0 -1 4194304 0", False, id="a-name-that-looks-like-a-state"),
    ],
)
def test_what_the_kernel_says_of_the_first_thread_counts(tmp_path: Path, stat: str, expected: bool) -> None:
    (tmp_path / "proc" / "7").mkdir(parents=True)
    (tmp_path / "proc" / "7" / "stat").write_text(stat)
    assert is_ending(7, tmp_path) is expected
