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
