"""Every way in which a file gets new content is noticed once; what leaves the content as it is, is not."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sixfold.core.watcher import content_digest, watch_file

DEBOUNCE_MS = 50
RECHECK_MS = 100
NEVER_MS = 3_600_000


class Seen:
    """Collects the file's content at each call and lets a test wait for a number of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.contents: asyncio.Queue[str] = asyncio.Queue()

    async def __call__(self) -> None:
        self.contents.put_nowait(self._path.read_text(encoding="utf-8"))

    async def next(self) -> str:
        return await asyncio.wait_for(self.contents.get(), timeout=10)


@asynccontextmanager
async def watching(path: Path) -> AsyncGenerator[Seen, None]:
    seen, stop = Seen(path), asyncio.Event()
    # "seen" differs from the content, so the first call tells that the watch is on.
    task = asyncio.create_task(watch_file(path, seen, stop, seen=b"", debounce_ms=DEBOUNCE_MS, recheck_ms=RECHECK_MS))
    try:
        await seen.next()
        yield seen
    finally:
        stop.set()
        await task


def rename_over(path: Path, text: str) -> None:
    draft = path.with_name(".draft~")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def delete_and_create(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("replace", [write, rename_over, delete_and_create])
async def test_new_content_is_noticed_however_it_came(tmp_path: Path, replace: Callable[[Path, str], None]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("one", encoding="utf-8")
    async with watching(path) as seen:
        replace(path, "two")
        assert await seen.next() == "two"
        replace(path, "three")
        assert await seen.next() == "three"


async def test_a_swapped_link_below_the_file_is_noticed(tmp_path: Path) -> None:
    # As Kubernetes mounts a ConfigMap: config.yaml -> ..data/config.yaml, ..data -> ..version
    for version in ("1", "2", "3"):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "config.yaml").write_text(version, encoding="utf-8")
    (tmp_path / "..data").symlink_to("..1")
    path = tmp_path / "config.yaml"
    path.symlink_to("..data/config.yaml")
    async with watching(path) as seen:
        for version in ("2", "3"):
            (tmp_path / "..data_tmp").symlink_to(f"..{version}")
            os.replace(tmp_path / "..data_tmp", tmp_path / "..data")
            assert await seen.next() == version


async def test_a_link_to_a_file_elsewhere_is_followed(tmp_path: Path) -> None:
    for folder in ("there", "here"):
        (tmp_path / folder).mkdir()
    target = tmp_path / "there" / "real.yaml"
    target.write_text("one", encoding="utf-8")
    path = tmp_path / "here" / "config.yaml"
    path.symlink_to(target)
    async with watching(path) as seen:
        target.write_text("two", encoding="utf-8")
        assert await seen.next() == "two"


async def test_equal_content_and_other_files_call_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("one", encoding="utf-8")
    async with watching(path) as seen:
        path.write_text("one", encoding="utf-8")
        path.touch()
        (tmp_path / "other").write_text("x", encoding="utf-8")
        path.unlink()
        path.write_text("two", encoding="utf-8")
        assert await seen.next() == "two"
        assert seen.contents.empty()


def test_the_digest_of_a_missing_file_is_none(tmp_path: Path) -> None:
    assert content_digest(tmp_path / "nothing") is None


async def test_events_alone_suffice(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("0", encoding="utf-8")
    seen, stop = Seen(path), asyncio.Event()
    task = asyncio.create_task(watch_file(path, seen, stop, debounce_ms=DEBOUNCE_MS, recheck_ms=NEVER_MS))
    for number in range(1, 100):  # the first writes may come before the watch is on
        path.write_text(str(number), encoding="utf-8")
        try:
            await asyncio.wait_for(seen.contents.get(), timeout=0.3)
            break
        except TimeoutError:
            continue
    else:
        pytest.fail("no event arrived")
    stop.set()
    await task
