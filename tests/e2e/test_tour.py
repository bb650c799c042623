"""docs/tour.md and the pages of the modalities, executed as they are written, with the answers that the tour shows."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "tour.md", *sorted((ROOT / "docs" / "modalities").glob("*.md"))]
ADDRESS = "http://127.0.0.1:8000"

_FENCE = re.compile(r"^```(bash|python)\n(.*?)^```\n(?:\n^```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Call:
    """A block of a page that is to be run, and what it is said to print; ``...`` stands for anything."""

    page: str
    number: int
    language: str
    code: str
    shown: str

    def __str__(self) -> str:
        return f"{self.page}-{self.number}"


def calls() -> list[Call]:
    return [
        Call(path.stem, number, found[1], found[2], found[3] or "")
        for path in PAGES
        for number, found in enumerate(_FENCE.finditer(path.read_text(encoding="utf-8")))
    ]


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.parametrize("call", calls(), ids=str)
def test_it_does_what_the_page_says(call: Call, six_server: Any, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    code = call.code.replace(ADDRESS, six_server.url)
    command = [sys.executable, "-c", code] if call.language == "python" else ["bash", "-eo", "pipefail", "-c", code]
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert '"error"' not in done.stdout
    pattern = re.sub(r"([\[\]?*])", r"[\1]", call.shown.strip()).replace("...", "*")
    assert not call.shown or fnmatch.fnmatchcase(done.stdout.strip(), pattern), done.stdout


def test_each_page_shows_calls_that_can_be_run() -> None:
    found = calls()
    assert {call.page for call in found} == {path.stem for path in PAGES}
    assert all(ADDRESS in call.code or call.code.startswith("sixfold ") for call in found)
    assert len([call for call in found if call.page == "tour" and call.shown]) > 10


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_configurations_of_the_page_are_valid(path: Path, tmp_path: Path) -> None:
    from sixfold.core.config import load_config

    for text in re.findall(r"^```yaml\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        file = tmp_path / "config.yaml"
        file.write_text(text)
        load_config(file, environ={})
