"""An interrupted download goes on where it stopped, and a wrong file never appears."""

import hashlib
import multiprocessing
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sixfold.core.errors import SourceError
from sixfold.core.hookspecs import Progress
from sixfold.core.sources.download import AccessRefused, RemoteFile, fetch_file, file_lock

CONTENT = bytes(range(256)) * 40


class Server(Protocol):
    url: str
    files: dict[str, bytes]
    ranges: list[str | None]
    break_after: list[int]
    status: int | None
    honours_ranges: bool


class Reports(Protocol):
    calls: list[tuple[str, int, int | None]]

    def __call__(self, what: str, done_bytes: int, total_bytes: int | None) -> None: ...


def remote(server: Server, content: bytes = CONTENT) -> RemoteFile:
    server.files["/f"] = content
    return RemoteFile(url=f"{server.url}/f", sha256=hashlib.sha256(CONTENT).hexdigest(), label="the file")


def no_wait(_seconds: float) -> None:
    return


def test_a_file_is_fetched_and_its_progress_told(file_server: Server, tmp_path: Path, reports: Reports) -> None:
    fetch_file(remote(file_server), tmp_path / "f", reports)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert reports.calls[0] == ("the file", 0, len(CONTENT))
    assert reports.calls[-1] == ("the file", len(CONTENT), len(CONTENT))
    assert not (tmp_path / "f.part").exists()


def test_a_file_that_is_there_needs_no_network(tmp_path: Path, quiet: Progress) -> None:
    (tmp_path / "f").write_bytes(b"anything")
    fetch_file(RemoteFile(url="http://127.0.0.1:1/f", sha256="", label="f"), tmp_path / "f", quiet)


def test_a_part_left_by_another_run_is_continued(file_server: Server, tmp_path: Path, reports: Reports) -> None:
    (tmp_path / "f.part").write_bytes(CONTENT[:1000])
    fetch_file(remote(file_server), tmp_path / "f", reports)
    assert file_server.ranges == ["bytes=1000-"]
    assert reports.calls[0] == ("the file", 1000, len(CONTENT))
    assert (tmp_path / "f").read_bytes() == CONTENT


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, len(CONTENT) // 2), max_size=5))
def test_a_connection_may_break_anywhere_as_long_as_something_comes(
    file_server: Server, tmp_path: Path, quiet: Progress, cuts: list[int]
) -> None:
    file_server.break_after[:] = cuts
    fetch_file(remote(file_server), tmp_path / "f", quiet, wait=no_wait)
    assert (tmp_path / "f").read_bytes() == CONTENT
    (tmp_path / "f").unlink()


def test_a_server_without_ranges_sends_it_all_again(file_server: Server, tmp_path: Path, quiet: Progress) -> None:
    file_server.honours_ranges = False
    (tmp_path / "f.part").write_bytes(b"x" * 100)
    fetch_file(remote(file_server), tmp_path / "f", quiet)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_complete_part_is_only_checked(file_server: Server, tmp_path: Path, quiet: Progress) -> None:
    (tmp_path / "f.part").write_bytes(CONTENT)
    fetch_file(remote(file_server), tmp_path / "f", quiet)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_wrong_file_is_deleted_and_the_next_try_starts_anew(
    file_server: Server, tmp_path: Path, quiet: Progress
) -> None:
    with pytest.raises(SourceError, match=r"has sha256 .*, expected .* deleted"):
        fetch_file(remote(file_server, b"evil"), tmp_path / "f", quiet)
    assert list(tmp_path.iterdir()) == []
    fetch_file(remote(file_server), tmp_path / "f", quiet)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_download_that_gets_nowhere_ends_with_advice_and_keeps_its_part(
    file_server: Server, tmp_path: Path, quiet: Progress
) -> None:
    waits: list[float] = []
    file_server.break_after[:] = [500, 0, 0, 0]
    with pytest.raises(SourceError, match=r"broke off at 500 bytes.*goes on from there"):
        fetch_file(remote(file_server), tmp_path / "f", quiet, wait=waits.append)
    assert (tmp_path / "f.part").read_bytes() == CONTENT[:500]
    assert waits == [0.0, 1.0, 3.0]


def test_an_overloaded_server_is_asked_again(file_server: Server, tmp_path: Path, quiet: Progress) -> None:
    file_server.status = 503

    def recover(_seconds: float) -> None:
        file_server.status = None

    fetch_file(remote(file_server), tmp_path / "f", quiet, wait=recover)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_missing_file_is_not_asked_for_again(file_server: Server, tmp_path: Path, quiet: Progress) -> None:
    file_server.status = 404
    with pytest.raises(SourceError, match="HTTP 404"):
        fetch_file(remote(file_server), tmp_path / "f", quiet, wait=no_wait)
    assert len(file_server.ranges) == 1


@pytest.mark.parametrize("status", [401, 403, 407])
def test_a_refusal_is_told_apart_because_another_client_may_be_let_in(
    file_server: Server, tmp_path: Path, quiet: Progress, status: int
) -> None:
    file_server.status = status
    with pytest.raises(AccessRefused):
        fetch_file(remote(file_server), tmp_path / "f", quiet, wait=no_wait)


def test_no_server_at_all_ends_with_advice(tmp_path: Path, quiet: Progress) -> None:
    nowhere = RemoteFile(url="http://127.0.0.1:1/f", sha256="0", label="f")
    with pytest.raises(SourceError, match="Check the network"):
        fetch_file(nowhere, tmp_path / "f", quiet, wait=no_wait)


def test_a_file_url_is_copied(tmp_path: Path, quiet: Progress) -> None:
    (tmp_path / "origin").write_bytes(CONTENT)
    there = RemoteFile(url=(tmp_path / "origin").as_uri(), sha256=hashlib.sha256(CONTENT).hexdigest(), label="the file")
    fetch_file(there, tmp_path / "f", quiet)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_disk_that_cannot_be_written_is_named(tmp_path: Path, file_server: Server, quiet: Progress) -> None:
    with pytest.raises(SourceError, match=r"cannot write .*missing"):
        fetch_file(remote(file_server), tmp_path / "missing" / "f", quiet, wait=no_wait)


def _hold(path: str, held: Event, release: Event) -> None:
    with file_lock(Path(path), "x", lambda _what, _done_bytes, _total_bytes: None):
        held.set()
        release.wait(30)


def test_a_second_process_waits_for_the_first_and_says_so(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path / "l.lock"), held, release))
    process.start()
    assert held.wait(30)
    told: list[str] = []

    def progress(what: str, _done: int, _total: int | None) -> None:
        told.append(what)
        release.set()

    with file_lock(tmp_path / "l.lock", "the model", progress):
        assert told == ["the model (another process is at it)"]
    process.join(30)
    assert process.exitcode == 0
