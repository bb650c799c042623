from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from sixfold.core.errors import NotReady
from sixfold.core.files import FileStore
from tests.fakes import FakeClock


def test_a_file_is_kept_under_an_id_that_nobody_can_guess(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "f", 60.0)
    first, second = store.put(b"one", ".png"), store.put(b"one", ".png")
    assert first != second
    assert len(first) == 32 + len(".png")
    path = store.path(first)
    assert path is not None
    assert path.read_bytes() == b"one"
    assert path.stat().st_mode & 0o077 == 0
    assert sorted(each.name for each in (tmp_path / "f").iterdir()) == sorted((first, second))


def test_files_expire(tmp_path: Path) -> None:
    clock = FakeClock()
    store = FileStore(tmp_path, 60.0, clock=clock)
    old = store.put(b"old")
    clock.advance(59.0)
    young = store.put(b"young")
    assert store.path(old) is not None
    clock.advance(1.0)
    assert store.path(old) is None
    assert store.expire() == 1
    assert [each.name for each in tmp_path.iterdir()] == [young]
    assert store.num_bytes == len(b"young")


def test_files_without_a_time_to_live_stay(tmp_path: Path) -> None:
    clock = FakeClock()
    store = FileStore(tmp_path, None, clock=clock)
    kept = store.put(b"x")
    clock.advance(1e9)
    assert store.expire() == 0
    assert store.path(kept) is not None


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../secret", "/etc/passwd", "a" * 32 + "/../../x", "a" * 31, "a" * 32 + "\n", "a" * 32 + ".PNG"],
)
def test_no_other_text_leads_to_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("x")
    store = FileStore(tmp_path / "f", 60.0)
    assert store.path(name) is None
    assert not store.delete(name)


def test_deleting(tmp_path: Path) -> None:
    store = FileStore(tmp_path, 60.0)
    name = store.put(b"x")
    assert store.delete(name)
    assert not store.delete(name)
    assert store.path(name) is None
    assert store.num_bytes == 0


def test_a_full_store_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    clock = FakeClock()
    store = FileStore(tmp_path, 60.0, max_bytes=10, clock=clock)
    kept = store.put(b"x" * 8)
    with pytest.raises(NotReady) as full:
        store.put(b"x" * 3)
    assert full.value.code == "storage_full"
    assert store.path(kept) is not None
    store.put(b"x" * 2)
    clock.advance(60.0)
    store.put(b"x" * 10)


def test_what_is_reserved_is_free_for_those_who_may_take_it(tmp_path: Path) -> None:
    reserved = [8]
    store = FileStore(tmp_path, None, max_bytes=10, reserved=lambda: reserved[0])
    with pytest.raises(NotReady):
        store.put(b"x" * 3)
    with store.create(from_reserve=True) as file:
        file.write(b"x" * 9)
        file.commit()
    reserved[0] = 0
    store.put(b"x")


def test_the_shortest_file_takes_what_the_store_counts_at_least(tmp_path: Path) -> None:
    store = FileStore(tmp_path, None, max_bytes=10, min_file_bytes=4)
    names = [store.put(b"x"), store.put(b"x")]
    assert store.num_bytes == 8
    for _again in range(3):
        with pytest.raises(NotReady):
            store.put(b"x")
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(names)
    assert FileStore(tmp_path, None, min_file_bytes=4).num_bytes == 8
    assert store.delete(names[0])
    assert store.num_bytes == 4
    store.put(b"x" * 6)


@pytest.mark.parametrize(("number", "told"), [(errno.ENOSPC, NotReady), (errno.EDQUOT, NotReady), (errno.EIO, OSError)])
def test_a_write_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: type[Exception]
) -> None:
    store = FileStore(tmp_path, 60.0)

    def full_disk(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(told):
        store.put(b"x")
    assert list(tmp_path.iterdir()) == []
    assert store.num_bytes == 0


def test_a_new_store_finds_the_files_and_sweeps_what_was_half_written(tmp_path: Path) -> None:
    clock = FakeClock()
    name = FileStore(tmp_path, 60.0, clock=clock).put(b"xyz")
    (tmp_path / ".partial-1").write_bytes(b"half")
    again = FileStore(tmp_path, 60.0, clock=clock)
    assert again.path(name) is not None
    assert again.num_bytes == 3
    assert [each.name for each in tmp_path.iterdir()] == [name]
    clock.advance(60.0)
    assert again.expire() == 1


def test_several_threads_may_store_at_once(tmp_path: Path) -> None:
    store = FileStore(tmp_path, 60.0)
    names: list[str] = []

    def work() -> None:
        names.extend(store.put(b"x" * 10) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 80
    assert store.num_bytes == 800
