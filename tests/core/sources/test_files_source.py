"""file: sources are used where they lie."""

from pathlib import Path

import pytest

from sixfold.core.errors import SourceError
from sixfold.core.hookspecs import Progress
from sixfold.core.sources.files import FileSource


def test_a_folder_and_a_file_resolve_to_themselves(tmp_path: Path, quiet: Progress) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}", encoding="utf-8")
    for path in (tmp_path / "m", tmp_path / "m" / "config.json"):
        assert FileSource().resolve(str(path), cache_dir=tmp_path, progress=quiet) == path


def test_a_tilde_is_the_users_home(tmp_path: Path, quiet: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m.gguf").touch()
    assert FileSource().resolve("~/m.gguf", cache_dir=tmp_path, progress=quiet) == tmp_path / "m.gguf"


def test_a_missing_or_empty_path_says_what_to_put_there(tmp_path: Path, quiet: Progress) -> None:
    with pytest.raises(SourceError, match=r"No model at .*nothing"):
        FileSource().resolve(str(tmp_path / "nothing"), cache_dir=tmp_path, progress=quiet)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="is empty"):
        FileSource().resolve(str(tmp_path / "empty"), cache_dir=tmp_path, progress=quiet)


@pytest.mark.parametrize("reference", ["", "  "])
def test_a_reference_without_a_path_is_refused(reference: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="names no file"):
        FileSource().resolve(reference, cache_dir=tmp_path, progress=lambda _what, _done, _total: None)
