"""Kernels run on the threads that they were asked to run on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import numba, numpy as np
from sixfold.core.runtime import jit

@jit.kernel
def who(threads):
    for i in numba.prange(len(threads)):
        threads[i] = numba.get_thread_id()

jit.set_num_threads(2)  # starts them: without any, asking which one this is ends the process
for run in (who.serial, who.parallel, who.serial):
    threads = np.full(64, -1)
    run(threads)
    print(len(set(threads)), end=" ")
"""


def test_the_parallel_form_of_a_kernel_is_not_the_serial_one_from_the_cache(tmp_path: Path) -> None:
    """numba's files are found by a function's name: both forms once ran whichever had been compiled first."""
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    env = os.environ | {"NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    for _run in range(2):  # the second finds what the first has stored
        done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True)
        assert done.stdout.split() == ["1", "2", "1"], done.stderr


_KERNEL = """
import numpy as np
from pathlib import Path
from filelock import FileLock, Timeout
from numba.core.caching import IndexDataCacheFile
from sixfold.core.runtime import jit

@jit.kernel
def double(values):
    for i in range(len(values)):
        values[i] *= 2

LOCK = Path(double.serial._cache.cache_path, "sixfold-kernels.lock")

def is_held():
    try:
        with FileLock(LOCK, timeout=0):
            return False
    except Timeout:
        return True
"""

_WATCH = """
def watched(method):
    def run(*args):
        print(method.__name__, is_held(), end=" ")
        return method(*args)
    return run

for name in ("load", "save"):
    setattr(IndexDataCacheFile, name, watched(getattr(IndexDataCacheFile, name)))
"""

_NO_LOCK = """
LOCK.mkdir(parents=True)  # a folder can't be one
"""

_RUN = """
values = np.full(4, 1.0)
double.serial(values)
print(values.sum())
"""


def run(script: Path) -> str:
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_one_process_at_a_time_reads_or_writes_compiled_code(tmp_path: Path) -> None:
    """numba numbers the files by an index that it read before: two processes can give one number to different codes."""
    script = tmp_path / "script.py"
    script.write_text(_KERNEL + _WATCH + _RUN + "print(is_held())")
    assert run(script) == "load True save True 8.0\nFalse"
    assert run(script) == "load True 8.0\nFalse"  # finds what the first has stored


def test_without_a_lock_code_is_compiled_all_the_same(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_KERNEL + _NO_LOCK + _RUN)
    assert run(script) == "8.0"
