"""Holds a Ray head that must not outlive its owner: ``python -m sixfold.scaling.cluster.ray_keeper ARGUMENTS of ray start``.

Ray's processes are many and leave their parents. So this one adopts all that lose theirs, and ends every one of them when its
standard input ends (its owner is gone, however that came), when it is told to stop, or when Ray's head has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

_PR_SET_CHILD_SUBREAPER = 36
_GRACE_S = 10.0
"""Ray's processes have this long after SIGTERM; replicas were drained before."""


def keep(arguments: Sequence[str]) -> int:
    """Runs ``ray start`` until one of the three; returns 0 unless Ray ended by itself."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner, which drains first
    _adopt_orphans()
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *arguments],
        stdin=subprocess.DEVNULL,
    )
    try:
        return _wait(head)
    except _Stopped:
        return 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(_GRACE_S)
        _end_all(time.monotonic() + _GRACE_S)


class _Stopped(Exception):
    """SIGTERM came."""


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _Stopped


def _wait(head: subprocess.Popen[bytes]) -> int:
    """0 when the owner is gone, 1 when the head has ended."""
    while head.poll() is None:
        # Its end is looked for once a second: macOS has no descriptor of a process.
        if select.select([sys.stdin], [], [], 1.0)[0] and not os.read(sys.stdin.fileno(), 4096):
            return 0
    return 1


def _adopt_orphans() -> None:
    """Makes this process the parent of all descendants whose own has ended; Linux only, elsewhere Ray's own clean-up must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _end_all(term_until_s: float) -> None:
    """Ends all descendants: kindly until a time, then at once. Their children come to us in turn."""
    told: set[int] = set()
    while children := _children():
        kind = signal.SIGTERM if time.monotonic() < term_until_s else signal.SIGKILL
        for pid in children:
            if kind is signal.SIGKILL or pid not in told:
                told.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, kind)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.05)


def _children() -> list[int]:
    """Children of this process, those that ended and were not waited for among them."""
    return [int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]))
