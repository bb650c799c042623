"""Fetches one file by URL so that an interrupted download goes on where it stopped and a wrong file never appears."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

from sixfold.core.errors import SourceError
from sixfold.core.hookspecs import Progress

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 60.0
_MAX_FRUITLESS_ATTEMPTS = 3
_RANGE_NOT_SATISFIABLE = 416


class AccessRefused(SourceError):
    """The server wants credentials or a certificate that a plain download does not have; another client may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file whose content is known beforehand.

    Attributes:
        url: http, https or file URL.
        sha256: Hex digest of the content.
        label: What people call it, for progress and messages.
    """

    url: str
    sha256: str
    label: str


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def file_lock(path: Path, label: str, progress: Progress) -> Generator[None, None, None]:
    """Holds a lock file, so that two processes never write the same files; the second waits and says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        progress(f"{label} (another process is at it)", 0, None)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def fetch_file(
    file: RemoteFile, target: Path, progress: Progress, *, wait: Callable[[float], None] = time.sleep
) -> None:
    """Downloads to ``target``, by way of ``<target>.part``; returns at once if it is there.

    The caller holds a lock on the target. ``.part`` survives any interruption and the next call asks for the rest only.

    Args:
        file: What to fetch.
        target: Where it goes; its folder exists.
        progress: See :data:`sixfold.core.hookspecs.Progress`.
        wait: Sleeps some seconds between attempts that brought nothing.

    Raises:
        AccessRefused: The server wants credentials or its certificate is not trusted.
        SourceError: The server can't be reached or the content is not what was promised.
    """
    if target.exists():
        return
    part = target.with_name(target.name + ".part")
    fruitless = 0
    while True:
        before = _size(part)
        try:
            _append(file, part, progress)
            break
        except (OSError, http.client.HTTPException) as error:
            _refuse_hopeless(file, error)
            fruitless = 0 if _size(part) > before else fruitless + 1
            if fruitless >= _MAX_FRUITLESS_ATTEMPTS:
                raise SourceError(
                    f"{file.label}: the download broke off at {_size(part)} bytes: {error}. Check the network and try "
                    "again: it goes on from there."
                ) from error
            wait(2.0**fruitless - 1)
    actual = sha256_of(part)
    if actual != file.sha256:
        part.unlink()
        raise SourceError(
            f"{file.label}: the file fetched has sha256 {actual}, expected {file.sha256}. It was deleted. Try again; if "
            "it happens twice, the file at the origin was replaced: do not use it before you know why."
        )
    os.replace(part, target)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _append(file: RemoteFile, part: Path, progress: Progress) -> None:
    """Asks for what ``part`` lacks and appends it. Raises whatever the network or the disk raises."""
    done = _size(part)
    request = urllib.request.Request(file.url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != _RANGE_NOT_SATISFIABLE or not done:
            raise
        # Nothing is left to fetch, or the part is longer than the file: the checksum tells which.
        error.close()
        return
    with response, part.open("r+b" if done else "wb") as out:
        if done and getattr(response, "status", 200) != http.client.PARTIAL_CONTENT:
            done = 0  # the server sends the whole file again
        out.truncate(done)
        out.seek(done)
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        progress(file.label, done, total)
        while chunk := response.read(_CHUNK_BYTES):
            out.write(chunk)
            done += len(chunk)
            progress(file.label, done, total)
    if total is not None and done < total:
        raise http.client.IncompleteRead(b"", total - done)


def _refuse_hopeless(file: RemoteFile, error: Exception) -> None:
    """Raises for errors that another attempt would meet again."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        if error.code in (401, 403, 407):
            raise AccessRefused(
                f"{file.label}: the server answered HTTP {error.code}: it wants credentials. Fetch the file by hand, or from a "
                "server that has it for all."
            ) from error
        if 400 <= error.code < 500 and error.code not in (408, 429):
            raise SourceError(
                f"{file.label}: the server answered HTTP {error.code}. Check the name and version."
            ) from error
    elif isinstance(error, urllib.error.URLError) and "CERTIFICATE_VERIFY_FAILED" in str(error.reason):
        raise AccessRefused(
            f"{file.label}: the server's certificate is not trusted by this Python. Set SSL_CERT_FILE to one that it trusts."
        ) from error
    elif isinstance(error, OSError) and not isinstance(error, urllib.error.URLError) and error.filename:
        raise SourceError(f"{file.label}: cannot write {error.filename}: {error.strerror}. Free or fix it.") from error
