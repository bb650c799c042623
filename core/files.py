"""Keeps generated files under names that nobody can guess, for a bounded time and in a bounded space."""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sixfold.core.errors import NotReady

_ID = re.compile(r"[A-Za-z0-9_-]{32}(?:\.[a-z0-9]{1,10})?", re.ASCII)
_SUFFIX = re.compile(r"(?:\.[a-z0-9]{1,10})?", re.ASCII)
_ID_BYTES = 24
_PARTIAL = ".partial-"


class FileStore:
    """Files by id. Safe to use from several threads; blocks for the disk, so call it with ``asyncio.to_thread``.

    Args:
        root: A folder of its own; made if it is not there. Files that are in it already are kept.
        ttl_s: How long a file is kept; None for ever.
        max_bytes: Of all files together.
        clock: Unix seconds.
    """

    def __init__(
        self,
        root: Path,
        ttl_s: float | None,
        *,
        max_bytes: int = 10 * 1024**3,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left_over in root.glob(f"{_PARTIAL}*"):
            left_over.unlink(missing_ok=True)
        self._sizes = {path.name: path.stat().st_size for path in root.iterdir() if _ID.fullmatch(path.name)}
        self._num_bytes = sum(self._sizes.values())

    @property
    def num_bytes(self) -> int:
        """What all files take together."""
        return self._num_bytes

    def put(self, data: bytes, suffix: str = "") -> str:
        """Stores a file, whole or not at all, and returns its id.

        Args:
            data: The content.
            suffix: Ends the id, e.g. ``".png"``: a dot with up to ten lower-case letters or digits.

        Raises:
            NotReady: There is no room (``storage_full``): nothing that was promised is removed before its time.
        """
        with self.create(suffix) as file:
            file.write(data)
            return file.commit()

    def create(self, suffix: str = "") -> FileWriter:
        """Begins a file that is written piece by piece; it is there once `FileWriter.commit` was called.

        Args:
            suffix: As for `put`.
        """
        assert _SUFFIX.fullmatch(suffix), f"{suffix!r} is no suffix such as '.png'"
        self.expire()
        path = self._root / (secrets.token_urlsafe(_ID_BYTES) + suffix)
        return FileWriter(path, take=self._take, keep=self._keep, clock=self._clock)

    def ids(self) -> tuple[str, ...]:
        """The ids of all files that were committed."""
        with self._lock:
            return tuple(self._sizes)

    def path(self, file_id: str) -> Path | None:
        """Where the file is; None if there is none of this id (any more). Any text may be given."""
        if not _ID.fullmatch(file_id):
            return None
        path = self._root / file_id
        try:
            age_s = self._clock() - path.stat().st_mtime
        except OSError:
            return None
        return path if self._ttl_s is None or age_s < self._ttl_s else None

    def delete(self, file_id: str) -> bool:
        """Removes a file; whether there was one."""
        if not _ID.fullmatch(file_id):
            return False
        self._forget(file_id)
        try:
            (self._root / file_id).unlink()
        except FileNotFoundError:
            return False
        return True

    def expire(self) -> int:
        """Removes what is too old and returns how many files; `put` does it, too."""
        if self._ttl_s is None:
            return 0
        with self._lock:
            names = tuple(self._sizes)
        old = [name for name in names if self._age_s(name) >= self._ttl_s]
        return sum(self.delete(name) for name in old)

    def _age_s(self, name: str) -> float:
        try:
            return self._clock() - (self._root / name).stat().st_mtime
        except OSError:
            return 0.0  # it is being written

    def _take(self, num_bytes: int) -> None:
        """Takes room for a part of a file, or gives it back where the number is negative."""
        with self._lock:
            if num_bytes > 0 and self._num_bytes + num_bytes > self._max_bytes:
                raise NotReady(
                    "The server's storage for files is full. Try again later.", code="storage_full", retry_after_s=60.0
                )
            self._num_bytes += num_bytes

    def _keep(self, file_id: str, num_bytes: int) -> None:
        """Counts a file that is there from now on, in room that was taken."""
        with self._lock:
            self._sizes[file_id] = num_bytes

    def _forget(self, file_id: str) -> None:
        with self._lock:
            self._num_bytes -= self._sizes.pop(file_id, 0)


class FileWriter:
    """A file of a `FileStore` while it is written; as a context manager it is given up unless it was committed.

    Used by one thread at a time. Each part takes its room in the store when it is written.

    Args:
        path: Where it will be; the last part is its id.
        take: Takes room in the store, or raises.
        keep: Tells the store that the file is there.
        clock: Unix seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        take: Callable[[int], None],
        keep: Callable[[str, int], None],
        clock: Callable[[], float],
    ) -> None:
        self._path = path
        self._take = take
        self._keep = keep
        self._clock = clock
        self._partial = path.with_name(f"{_PARTIAL}{secrets.token_hex(8)}")
        self._file = os.fdopen(os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._ended = False
        self.num_bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """Adds to the file.

        Raises:
            NotReady: There is no room (``storage_full``).
        """
        self._take(len(data))
        self.num_bytes += len(data)
        self._file.write(data)

    def commit(self) -> str:
        """Puts the file on the disk, whole, and returns its id."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        now_s = self._clock()
        os.utime(self._partial, (now_s, now_s))
        self._partial.rename(self._path)
        self._keep(self._path.name, self.num_bytes)
        self._ended = True
        return self._path.name

    def abort(self) -> None:
        """Gives the file up. Harmless after `commit` and after itself."""
        if self._ended:
            return
        self._ended = True
        try:
            self._file.close()  # may have to write what is left, to a disk that is full
        finally:
            self._partial.unlink(missing_ok=True)
            self._take(-self.num_bytes)

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.abort()
