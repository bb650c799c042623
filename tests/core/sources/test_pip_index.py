"""The real pip is asked; an index on disk stands for the network."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sixfold.core.errors import SourceError
from sixfold.core.sources.pip_index import download, locate, run_pip
from sixfold.core.sources.wheel_reference import PinnedWheel

WriteWheel = Callable[[str, dict[str, bytes]], Path]


@pytest.fixture
def wheel(write_wheel: WriteWheel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PinnedWheel:
    """A wheel in a folder that pip is configured to look into, by pip's own variables."""
    info = "acme_weights-1.5.dist-info"
    path = write_wheel(
        "acme_weights-1.5-py3-none-any.whl",
        {
            "acme_weights/data": b"x",
            f"{info}/METADATA": b"Metadata-Version: 2.1\nName: acme-weights\nVersion: 1.5\nRequires-Dist: nonsense-xyz\n",
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        },
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return PinnedWheel(project="acme-weights", version="1.5", sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_the_real_pip_says_where_a_wheel_is_and_ignores_what_it_requires(wheel: PinnedWheel) -> None:
    assert locate(wheel).endswith("/acme_weights-1.5-py3-none-any.whl")


def test_the_real_pip_downloads_a_wheel(wheel: PinnedWheel, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    assert hashlib.sha256(download(wheel, tmp_path / "to").read_bytes()).hexdigest() == wheel.sha256


def test_pips_own_words_are_passed_on(wheel: PinnedWheel) -> None:
    absent = PinnedWheel(project="acme-weights", version="9.9", sha256=wheel.sha256)
    with pytest.raises(SourceError, match=r"pip could not find or fetch it: ERROR: .*acme-weights==9\.9"):
        locate(absent)


def test_a_report_that_is_not_understood_asks_for_a_newer_pip(wheel: PinnedWheel) -> None:
    for report in ("", "{}", '{"install": []}', '{"install": [{}]}', "[]"):

        def pip(_arguments: Sequence[str], answer: str = report) -> str:
            return answer

        with pytest.raises(SourceError, match="Upgrade pip"):
            locate(wheel, pip)


def test_a_python_without_pip_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n', encoding="utf-8")
    bare.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(bare))
    with pytest.raises(SourceError, match=r"need pip\. Run: .*python -m ensurepip"):
        run_pip(("--version",))
