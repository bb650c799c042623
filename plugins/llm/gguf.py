"""Keeps converted GGUF files: finds the file, names the result by its content, and has it made once, by a child process.

The conversion itself is in `gguf_convert`. It needs minutes of processor time and the whole model in memory, so it runs
in a process of its own and leaves nothing behind in the server's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sixfold.core.errors import SourceError
from sixfold.core.family import ModelFiles
from sixfold.core.hookspecs import Progress

_RECIPE = 1
"""Raised when the converter's output changes, so that old results are not used."""

UNKNOWN_ARCHITECTURE = 3
"""Exit status of the converter for a file that holds no decoder."""


def find_gguf(files: ModelFiles) -> Path | None:
    """The GGUF file that has to be converted, if there is one.

    Raises:
        SourceError: The folder holds several.
    """
    if files.path.is_file():
        return files.path if files.path.suffix.lower() == ".gguf" else None
    if files.has("config.json"):
        return None
    found = sorted(path for path in files.path.glob("*.gguf") if not path.name.startswith("mmproj"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise SourceError(f"The model's folder holds several GGUF files: {names}. Name one in the model's source.")
    return found[0] if found else None


def convert_gguf(source: Path, cache_dir: Path, progress: Progress) -> Path | None:
    """The folder with the converted model; made if it is not there yet. None if the file holds no decoder.

    Two processes may convert the same file at once: each works in a folder of its own, and the first to finish wins.

    Args:
        source: The GGUF file.
        cache_dir: Where results are kept.
        progress: See `sixfold.core.hookspecs.Progress`.

    Raises:
        SourceError: The file is broken, its kind is not known, or a package is missing.
    """
    num_bytes = source.stat().st_size
    progress(f"checking {source.name}", 0, num_bytes)
    with source.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    progress(f"checking {source.name}", num_bytes, num_bytes)
    target = cache_dir / "gguf" / f"{source.stem}-{digest[:16]}-{_RECIPE}"
    if target.is_dir():
        return target
    _check_packages()
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    try:
        progress(f"converting {source.name} (once, some minutes)", 0, None)
        if not _run_converter(source, work):
            return None
        _move(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    progress(f"converted {source.name}", num_bytes, num_bytes)
    return target


def _check_packages() -> None:
    missing = [name for name in ("gguf", "torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise SourceError(f"GGUF files need {', '.join(missing)}. Install them: pip install 'sixfold[llm]'.")


def _run_converter(source: Path, work: Path) -> bool:
    command = [sys.executable, "-m", "sixfold.plugins.llm.gguf_convert", str(source), str(work)]
    child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if child.returncode == UNKNOWN_ARCHITECTURE:
        return False
    if child.returncode != 0:
        last = child.stderr.strip().splitlines()[-1:] or [f"exit status {child.returncode}"]
        raise SourceError(
            f"{source.name} can't be converted: {last[0][:300]}. Use another file, or a model in safetensors format."
        )
    return True


def _move(work: Path, target: Path) -> None:
    work.chmod(0o755)
    try:
        work.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was faster, with the same content
            raise
