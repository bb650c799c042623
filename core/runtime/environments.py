"""Builds the environments that models ask for, each once: a venv, filled by pip, under a name made from its content."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from sixfold.core.config import ModelEntry
from sixfold.core.errors import ConfigError
from sixfold.core.family import Family
from sixfold.core.hookspecs import PROJECT, Progress
from sixfold.core.plugins import Plugins
from sixfold.core.runtime.interpreter import WORKER_REQUIREMENTS, Interpreter, clean_environ, other_interpreter
from sixfold.core.validation import did_you_mean

_READY = "sixfold-ready.json"
_NUM_SHOWN_LINES = 8
_DOWNLOADING = re.compile(r"\s*Downloading (?P<file>\S+).*\((?P<size>[\d.]+) (?P<unit>bytes|kB|MB|GB)\)")
_UNIT_BYTES = {"bytes": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_EXTRA = re.compile(r"""\(?\bextra\s*==\s*['"](?P<name>[^'"]+)['"]\)?""")


def resolve_environment(
    entry: ModelEntry, family: Family, plugins: Plugins, cache_dir: Path, progress: Progress
) -> Interpreter | None:
    """The Python for an entry's workers; None for the server's own. Builds what is not there yet: minutes.

    Raises:
        ConfigError: The interpreter does not fit, or the environment can't be built.
    """
    wanted = entry.env
    if wanted is None:
        return None
    place = f"models.{entry.name}.env"
    if wanted.python is not None:
        python, place = wanted.python, f"{place}.python"
    else:
        lines = requirement_lines(entry, family, plugins)
        python = build_environment(
            lines, cache_dir, what=f"environment of {entry.name}", place=place, progress=progress
        )
    return other_interpreter(python, family, plugins, cache_dir=cache_dir, place=place)


def requirement_lines(entry: ModelEntry, family: Family, plugins: Plugins) -> tuple[str, ...]:
    """The lines of the pip requirements file of an entry that asks for a built environment; the plan of `pull`.

    Raises:
        ConfigError: The package of the family has no such extra.
    """
    assert entry.env is not None
    bounds = {_name(line): line for line in _requires(PROJECT, None)}
    lines = [bounds.get(name, name) for name in WORKER_REQUIREMENTS.values()]
    if entry.env.extra is not None:
        distribution = plugins.distribution_of(f"family {family.name}")
        known: list[str] = importlib.metadata.metadata(distribution).get_all("Provides-Extra") or []
        if entry.env.extra not in known:
            raise ConfigError(
                f"models.{entry.name}.env.extra: {distribution} has no extra {entry.env.extra!r}. "
                f"{did_you_mean(entry.env.extra, known)}"
            )
        lines += _requires(distribution, entry.env.extra)
    return (*lines, *entry.env.requirements)


def build_environment(
    requirements: Sequence[str], cache_dir: Path, *, what: str, place: str, progress: Progress
) -> Path:
    """The interpreter of the environment with these requirements, built if it is not there.

    Two servers that want one environment build it once: the second waits. One that was left half built is built anew.

    Args:
        requirements: Lines of a pip requirements file.
        cache_dir: Where environments are kept.
        what: For progress.
        place: Dotted path of the setting, for messages.
        progress: Told the bytes that pip fetches.

    Raises:
        ConfigError: pip could not install them; with the end of what it said.
    """
    content = {"requirements": list(requirements), "python": sys.version_info[:2], "machine": platform.machine()}
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir / "environments" / key
    python = folder / "bin" / "python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / _READY).exists() and python.exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        progress(f"{what}: installing {', '.join(requirements)}", 0, None)
        try:
            _run([sys.executable, "-m", "venv", str(folder)], what=what, place=place, progress=progress)
            listed = folder / "requirements.txt"
            listed.write_text("\n".join(requirements) + "\n", encoding="utf-8")
            install = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
            _run([*install, "-r", str(listed)], what=what, place=place, progress=progress)
            (folder / _READY).write_text(json.dumps(content), encoding="utf-8")
        except BaseException:  # interrupted too: half an environment only takes room
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return python


def _run(command: list[str], *, what: str, place: str, progress: Progress) -> None:
    last: deque[str] = deque(maxlen=_NUM_SHOWN_LINES)
    num_bytes = 0
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean_environ()
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line.rstrip())
            found = _DOWNLOADING.match(line)
            if found is not None:
                num_bytes += int(float(found["size"]) * _UNIT_BYTES[found["unit"]])
                progress(f"{what}: fetching {found['file'].rpartition('/')[2]}", num_bytes, None)
    if process.returncode != 0:
        said = "\n  ".join(last)
        raise ConfigError(f"{place}: the environment can't be built; the end of what was said:\n  {said}")


def _requires(distribution: str, extra: str | None) -> list[str]:
    """The requirement lines of a distribution, or of one of its extras, extras of extras included."""
    lines: list[str] = []
    for line in importlib.metadata.requires(distribution) or ():
        requirement, _, marker = line.partition(";")
        found = _EXTRA.search(marker)
        if (found["name"] if found else None) != extra:
            continue
        inner = re.fullmatch(rf"{re.escape(distribution)}\[(?P<extras>[^\]]+)\]", requirement.strip())
        if inner is not None:
            lines += [each for name in inner["extras"].split(",") for each in _requires(distribution, name.strip())]
            continue
        rest = re.sub(r"^\s*and\b|\band\s*$", "", _EXTRA.sub("", marker)).strip()
        lines.append(f"{requirement.strip()}; {rest}" if rest else requirement.strip())
    return lines


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()
