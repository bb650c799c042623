"""Checks of a plugin's module: it loads, and costs nothing where its models are not."""

from __future__ import annotations

import os
import subprocess
import sys

from sixfold.core.plugins import PluginRecord
from sixfold.core.testing.failure import require

HEAVY = ("torch", "transformers", "diffusers", "onnxruntime", "tensorflow", "jax", "scipy", "litserve", "fastapi")
"""What the module of a plugin may not import: it is loaded in every process, also by ``sixfold --help``."""

_CODE = "import sys, {module}; print(*(name for name in {heavy!r} if name in sys.modules))"


def imports_nothing_heavy(record: PluginRecord) -> None:
    """Its module is imported by every process, so libraries are imported by what it names: loaders and factories."""
    done = subprocess.run(
        [sys.executable, "-c", _CODE.format(module=record.module.partition(":")[0], heavy=HEAVY)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    require(done.returncode == 0, f"{record.module} can't be imported alone: {done.stderr.strip().splitlines()[-1:]}")
    found = done.stdout.split()
    require(
        not found,
        f"{record.module} imports {', '.join(found)}. Import it in the module that Family.loader or Api.factory names.",
    )
