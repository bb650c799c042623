"""The allocator keeps what steps free and gives nothing a reason to fail."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from sixfold.core.runtime.allocator import keep_freed_memory, use_one_arena
assert use_one_arena()
if {keep}:
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    torch.ones(12 << 20).add_(torch.ones(12 << 20))
step(); step(); step()
before = faults()
for _ in range(20):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_step_takes_its_pages_once() -> None:
    def num_faults(keep: bool) -> int:
        done = subprocess.run([sys.executable, "-c", PROGRAM.format(keep=keep)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    # Tensors of 48 MiB, above what glibc learns by itself to keep: 490,000 pages of 4 KiB, or fewer large ones.
    without, kept = num_faults(False), num_faults(True)
    assert kept < without / 4, (kept, without)
