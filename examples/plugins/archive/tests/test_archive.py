"""What an archive becomes, and what is refused. `pytest --sixfold-plugin archive CONFIG` tries a real entry."""

import hashlib
import io
import random
import tarfile
from pathlib import Path
from typing import Literal

import pytest
from sixfold_archive import ArchiveSource

from sixfold.core import SourceError


def quiet(_what: str, _done_bytes: int, _total_bytes: int | None) -> None:
    return


def packed(folder: Path, name: str = "config.json") -> str:
    """A reference to an archive of one file."""
    path = folder / "model.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = 2
        archive.addfile(info, io.BytesIO(b"{}"))
    return f"{path.as_uri()}#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_an_archive_is_unpacked_once(tmp_path: Path) -> None:
    reference = packed(tmp_path)
    folder = ArchiveSource().resolve(reference, cache_dir=tmp_path / "cache", progress=quiet)
    assert (folder / "config.json").read_text() == "{}"
    (tmp_path / "model.tar.gz").unlink()
    assert ArchiveSource().resolve(reference, cache_dir=tmp_path / "cache", progress=quiet) == folder


def test_a_wrong_digest_is_refused(tmp_path: Path) -> None:
    reference = packed(tmp_path)[:-4] + "0000"
    with pytest.raises(SourceError, match="sha256"):
        ArchiveSource().resolve(reference, cache_dir=tmp_path / "cache", progress=quiet)


def test_a_member_that_leads_outside_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="can't be unpacked"):
        ArchiveSource().resolve(packed(tmp_path, "../outside.json"), cache_dir=tmp_path / "cache", progress=quiet)
    assert not list(tmp_path.rglob("outside.json"))


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.tar.gz"
    path.write_text("no archive")
    reference = f"{path.as_uri()}#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"
    with pytest.raises(SourceError, match="can't be unpacked"):
        ArchiveSource().resolve(reference, cache_dir=tmp_path / "cache", progress=quiet)


def refused(path: Path, folder: Path) -> None:
    reference = f"{path.as_uri()}#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"
    with pytest.raises(SourceError, match="can't be unpacked"):
        ArchiveSource().resolve(reference, cache_dir=folder / "cache", progress=quiet)
    assert not [left for left in (folder / "cache").rglob("*") if left.is_dir() and left.parent.name == "archive"]


def weights(folder: Path, kind: Literal["gz", "xz"]) -> Path:
    """An archive of bytes that can't be made smaller."""
    path = folder / f"model.tar.{kind}"
    with tarfile.open(path, f"w:{kind}") as archive:
        info = tarfile.TarInfo("weights.bin")
        info.size = 1 << 16
        archive.addfile(info, io.BytesIO(random.Random(0).randbytes(info.size)))
    return path


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_an_archive_that_breaks_off_is_refused(kind: Literal["gz", "xz"], tmp_path: Path) -> None:
    path = weights(tmp_path, kind)
    path.write_bytes(path.read_bytes()[:-1000])
    refused(path, tmp_path)


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_an_archive_whose_bytes_are_damaged_is_refused(kind: Literal["gz", "xz"], tmp_path: Path) -> None:
    path = weights(tmp_path, kind)
    content = bytearray(path.read_bytes())
    content[20_000:40_000] = bytes(20_000)
    path.write_bytes(content)
    refused(path, tmp_path)


def test_an_empty_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.tar.gz"
    with tarfile.open(path, "w:gz"):
        pass
    refused(path, tmp_path)
