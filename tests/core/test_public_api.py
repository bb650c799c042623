from __future__ import annotations

import subprocess
import sys

import sixfold.core


def test_all_is_sorted_and_every_name_exists() -> None:
    assert sixfold.core.__all__ == sorted(sixfold.core.__all__)
    for name in sixfold.core.__all__:
        assert hasattr(sixfold.core, name)


def test_nothing_public_is_missing_from_all() -> None:
    public = {
        name
        for name, value in vars(sixfold.core).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("sixfold.")
    }
    assert public <= set(sixfold.core.__all__)


def test_importing_the_core_imports_nothing_heavy() -> None:
    code = (
        "import sys, sixfold.core, sixfold.core.plugins as p; p.load_plugins(); "
        "heavy = {'torch', 'transformers', 'litserve', 'ray', 'sentence_transformers'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
