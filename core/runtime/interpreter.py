"""Makes another Python able to run workers of this installation, and says in time what it lacks.

The other interpreter must run exactly this Sixfold: both ends of the channel are one program. But an editable install maps
``sixfold.core`` to another folder, the other environment may hold an older Sixfold, and plugins are found by metadata that
is not there. So a folder is made that holds links to the packages and the entry points of the plugins, and goes in front
of the other interpreter's path by ``PYTHONPATH``, which also reaches the processes that an engine spawns.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sixfold.core.errors import ConfigError
from sixfold.core.family import Family
from sixfold.core.hookspecs import PROJECT
from sixfold.core.plugins import Plugins

OLDEST_PYTHON = (3, 11)

WORKER_REQUIREMENTS = {
    "filelock": "filelock",
    "msgspec": "msgspec",
    "numpy": "numpy",
    "pluggy": "pluggy",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
}
"""What every worker imports, with the name of the distribution; families add their own."""

_PROBE_TIMEOUT_S = 60.0
_PROBE = (
    "import importlib.util, json, sys\n"
    "def lacks(name):\n"
    "    try: return importlib.util.find_spec(name) is None\n"
    "    except ModuleNotFoundError: return True\n"
    "print(json.dumps([list(sys.version_info[:3]), [n for n in sys.argv[1:] if lacks(n)]]))\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A Python for workers.

    Attributes:
        python: Its executable.
        import_path: The folder that makes this installation importable there.
    """

    python: Path
    import_path: Path


def other_interpreter(python: Path, family: Family, plugins: Plugins, *, cache_dir: Path, place: str) -> Interpreter:
    """Checks another interpreter and makes this installation importable there. Blocks for a process.

    Args:
        python: Its executable.
        family: Whose workers it shall run.
        plugins: One of them brings the family.
        cache_dir: Where the folder of links is kept.
        place: Dotted path of the setting, for messages.

    Raises:
        ConfigError: It is no Python, too old, or lacks packages.
    """
    version, missing = _probe(python, [*WORKER_REQUIREMENTS, *family.requires], place)
    if version < OLDEST_PYTHON:
        raise ConfigError(
            f"{place}: {python} is Python {_dotted(version)}; workers need {_dotted(OLDEST_PYTHON)} or newer. "
            "Name another interpreter."
        )
    if missing:
        names = " ".join(WORKER_REQUIREMENTS.get(name, name) for name in missing)
        raise ConfigError(
            f"{place}: the environment of {python} lacks {', '.join(missing)}, which the family {family.name!r} needs. "
            f"Run: {python} -m pip install {names}"
        )
    return Interpreter(python=python, import_path=link_installation(family, plugins, cache_dir))


def _probe(python: Path, modules: Sequence[str], place: str) -> tuple[tuple[int, ...], list[str]]:
    try:
        done = subprocess.run(
            [str(python), "-c", _PROBE, *modules],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            env=clean_environ(),
        )
    except FileNotFoundError as error:
        raise ConfigError(f"{place}: no Python at {python}. Name an interpreter that is there.") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{place}: {python} can't be run: {error}. Name a Python interpreter.") from error
    try:
        version, missing = cast("tuple[list[int], list[str]]", json.loads(done.stdout))
    except ValueError as error:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise ConfigError(
            f"{place}: {python} does not answer as a Python does ({said[-1] if said else 'it says nothing'}). "
            "Name a Python interpreter."
        ) from error
    return tuple(version), missing


def clean_environ() -> dict[str, str]:
    """This process's environment without what would send another Python to this one's packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def link_installation(family: Family, plugins: Plugins, cache_dir: Path) -> Path:
    """The folder for the other interpreter's path; made once for each set of packages that it links.

    It holds this project and the package that brings the family, each with its entry points; a package's own dependencies
    are the other environment's business.
    """
    distributions = {PROJECT, plugins.distribution_of(f"family {family.name}")}
    points = [point for point in importlib.metadata.entry_points(group=PROJECT) if point.dist is not None]
    mine = [point for point in points if point.dist is not None and point.dist.name in distributions]
    packages = dict(_package_folder(point.module) for point in mine) | dict([_package_folder(__name__)])
    infos = {
        name: [point for point in mine if point.dist is not None and point.dist.name == name] for name in distributions
    }
    files = {
        f"{name.replace('-', '_')}-{importlib.metadata.version(name)}.dist-info": {
            "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {importlib.metadata.version(name)}\n",
            "entry_points.txt": "\n".join([f"[{PROJECT}]", *(f"{p.name} = {p.value}" for p in its_points), ""]),
        }
        for name, its_points in infos.items()
    }
    links = {name: str(folder) for name, folder in packages.items()}
    content = json.dumps([links, files], sort_keys=True)
    folder = cache_dir / "environments" / f"links-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    if not folder.exists():
        _write(folder, links, files)
    return folder


def _package_folder(module: str) -> tuple[str, Path]:
    """The outermost package of a module that is no namespace, as a relative path, and where it lies."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        spec = importlib.util.find_spec(".".join(parts[:depth]))
        if spec is not None and spec.origin is not None:
            origin = Path(spec.origin)
            name = "/".join(parts[:depth])
            return (name, origin.parent) if origin.name == "__init__.py" else (f"{name}{origin.suffix}", origin)
    raise ConfigError(f"The package of {module} has no files, so no other Python can import it.")


def _write(folder: Path, links: dict[str, str], files: dict[str, dict[str, str]]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".links-"))
    for name, target in links.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).symlink_to(target)
    for name, texts in files.items():
        (made / name).mkdir()
        for file_name, text in texts.items():
            (made / name / file_name).write_text(text, encoding="utf-8")
    made.chmod(0o755)
    try:
        made.rename(folder)
    except OSError:  # another server was faster; its folder is the same
        shutil.rmtree(made)


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))
