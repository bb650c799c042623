"""What an archive becomes, and what is refused. `pytest --sixfold-plugin archive CONFIG` tries a real entry."""

import hashlib
import io
import tarfile
from pathlib import Path

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
