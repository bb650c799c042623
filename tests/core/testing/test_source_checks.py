"""The checks of sources pass on a sound one, and each fails on one that breaks its promise."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from sixfold.core.errors import SourceError
from sixfold.core.hookspecs import Progress
from sixfold.core.plugins import PluginRecord
from sixfold.core.testing.failure import CheckFailed
from sixfold.core.testing.plugin_checks import imports_nothing_heavy
from sixfold.core.testing.source_checks import (
    SOURCE_CHECKS,
    SourceUnderTest,
    finds_its_files,
    needs_no_network_the_second_time,
    refuses_nonsense,
)


class ShelfSource:
    """Writes a model's one file, once."""

    scheme = "shelf"

    def resolve(self, reference: str, *, cache_dir: Path, progress: Progress) -> Path:
        if not reference.isalpha():
            raise SourceError(f"shelf:{reference} is malformed. Write shelf:NAME.")
        folder = cache_dir / "shelf" / reference
        if not folder.exists():
            folder.mkdir(parents=True)
            self.write(folder)
        progress(reference, 1, 1)
        return folder

    def write(self, folder: Path) -> None:
        (folder / "model.json").write_text("{}")


class LyingSource(ShelfSource):
    def resolve(self, reference: str, *, cache_dir: Path, progress: Progress) -> Path:
        return cache_dir / "nowhere"


class EmptySource(ShelfSource):
    def write(self, folder: Path) -> None:
        pass


class UntidySource(ShelfSource):
    def write(self, folder: Path) -> None:
        super().write(folder)
        (folder.parent / "model.part").write_text("half")


class WrongProgressSource(ShelfSource):
    def resolve(self, reference: str, *, cache_dir: Path, progress: Progress) -> Path:
        progress(reference, 2, 1)
        return super().resolve(reference, cache_dir=cache_dir, progress=progress)


class CallingSource(ShelfSource):
    def resolve(self, reference: str, *, cache_dir: Path, progress: Progress) -> Path:
        try:
            socket.create_connection(("127.0.0.1", 1), timeout=1).close()
        except OSError:
            pass
        return super().resolve(reference, cache_dir=cache_dir, progress=progress)


class RewritingSource(ShelfSource):
    def resolve(self, reference: str, *, cache_dir: Path, progress: Progress) -> Path:
        folder = super().resolve(reference, cache_dir=cache_dir, progress=progress)
        self.write(folder)
        return folder


class MovingSource(ShelfSource):
    def resolve(self, reference: str, *, cache_dir: Path, progress: Progress) -> Path:
        folder = super().resolve(reference, cache_dir=cache_dir, progress=progress)
        return folder / "model.json" if (cache_dir / "seen").exists() else self._first(folder, cache_dir)

    def _first(self, folder: Path, cache_dir: Path) -> Path:
        (cache_dir / "seen").write_text("")
        return folder


class CrashingSource(ShelfSource):
    def resolve(self, reference: str, *, cache_dir: Path, progress: Progress) -> Path:
        return {"book": cache_dir}[reference]


class CredulousSource(ShelfSource):
    def resolve(self, reference: str, *, cache_dir: Path, progress: Progress) -> Path:
        return super().resolve("any", cache_dir=cache_dir, progress=progress)


class AskingSource(ShelfSource):
    def resolve(self, reference: str, *, cache_dir: Path, progress: Progress) -> Path:
        if reference:
            socket.getaddrinfo("shelf.example.org", 443)
        raise SourceError("There is no such book.")


class SilentSource(ShelfSource):
    def resolve(self, reference: str, *, cache_dir: Path, progress: Progress) -> Path:
        if not reference.isalpha():
            raise SourceError("")
        return super().resolve(reference, cache_dir=cache_dir, progress=progress)


def subject(source: ShelfSource, folder: Path) -> SourceUnderTest:
    return SourceUnderTest(source=source, reference="book", cache_dir=folder)


@pytest.mark.parametrize("check", SOURCE_CHECKS)
def test_a_sound_source_passes(check: Callable[[SourceUnderTest], None], tmp_path: Path) -> None:
    check(subject(ShelfSource(), tmp_path))


@pytest.mark.parametrize(
    ("check", "source", "complaint"),
    [
        (finds_its_files, LyingSource(), "does not exist"),
        (finds_its_files, EmptySource(), "is empty"),
        (finds_its_files, UntidySource(), r"left \['.*model.part'\]"),
        (finds_its_files, WrongProgressSource(), "2 of 1 bytes"),
        (needs_no_network_the_second_time, CallingSource(), "connects to the network"),
        (needs_no_network_the_second_time, RewritingSource(), "wrote files anew"),
        (needs_no_network_the_second_time, MovingSource(), "first, then"),
        (refuses_nonsense, CredulousSource(), "is taken for a model"),
        (refuses_nonsense, CrashingSource(), "Raise a SourceError"),
        (refuses_nonsense, AskingSource(), "shelf:no such thing is looked up in the network"),
        (refuses_nonsense, SilentSource(), "without a word"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ShelfSource) else "",
)
def test_a_flawed_source_fails_its_check(
    check: Callable[[SourceUnderTest], None], source: ShelfSource, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckFailed, match=complaint):
        check(subject(source, tmp_path))


def test_a_plugin_that_imports_a_heavy_library_fails_and_a_light_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "heavy_plugin.py").write_text("import torch\n")
    (tmp_path / "broken_plugin.py").write_text("import no_such_module\n")
    (tmp_path / "light_plugin.py").write_text("from sixfold.core import Plugin\nPLUGIN = Plugin()\n")
    monkeypatch.syspath_prepend(tmp_path)  # pyright: ignore[reportUnknownMemberType]
    imports_nothing_heavy(PluginRecord(name="light", module="light_plugin:PLUGIN"))
    with pytest.raises(CheckFailed, match="heavy_plugin imports torch"):
        imports_nothing_heavy(PluginRecord(name="heavy", module="heavy_plugin"))
    with pytest.raises(CheckFailed, match=r"can't be imported alone.*no_such_module"):
        imports_nothing_heavy(PluginRecord(name="broken", module="broken_plugin"))
