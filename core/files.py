"""Keeps generated files under names that nobody can guess, for a bounded time and in a bounded space."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

from sixfold.core.errors import NotReady

_ID = re.compile(r"[A-Za-z0-9_-]{32}(?:\.[a-z0-9]{1,10})?", re.ASCII)
_SUFFIX = re.compile(r"(?:\.[a-z0-9]{1,10})?", re.ASCII)
_ID_BYTES = 24
_PARTIAL = ".partial-"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class FileStore:
    """Files by id. Safe to use from several threads; blocks for the disk, so call it with ``asyncio.to_thread``.

    Args:
        root: A folder of its own; made if it is not there. Files that are in it already are kept.
        ttl_s: How long a file is kept; None for ever.
        max_bytes: Of all files together, and of what is reserved.
        min_file_bytes: What a file takes at least, however short it is.
        reserved: Bytes that are kept free for `create` with ``from_reserve``.
        clock: Unix seconds.
    """

    def __init__(
        self,
        root: Path,
        ttl_s: float | None,
        *,
        max_bytes: int = 10 * 1024**3,
        min_file_bytes: int = 0,
        reserved: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._min_file_bytes = min_file_bytes
        self._reserved = reserved
        self._clock = clock
        self._lock = threading.Lock()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left_over in root.glob(f"{_PARTIAL}*"):
            left_over.unlink(missing_ok=True)
        self._sizes = {
            path.name: max(path.stat().st_size, min_file_bytes) for path in root.iterdir() if _ID.fullmatch(path.name)
        }
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

    def create(self, suffix: str = "", *, from_reserve: bool = False) -> FileWriter:
        """Begins a file that is written piece by piece; it is there once `FileWriter.commit` was called.

        Args:
            suffix: As for `put`.
            from_reserve: Whether it may take what is reserved.

        Raises:
            NotReady: There is no room.
        """
        assert _SUFFIX.fullmatch(suffix), f"{suffix!r} is no suffix such as '.png'"
        self.expire()
        path = self._root / (secrets.token_urlsafe(_ID_BYTES) + suffix)

        def take(num_bytes: int) -> None:
            self._take(num_bytes, 0 if from_reserve else self._reserved())

        return FileWriter(path, take=take, keep=self._keep, clock=self._clock, min_bytes=self._min_file_bytes)

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

    def _take(self, num_bytes: int, num_reserved: int) -> None:
        """Takes room for a part of a file, or gives it back where the number is negative."""
        with self._lock:
            if num_bytes > 0 and self._num_bytes + num_reserved + num_bytes > self._max_bytes:
                raise _full()
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
        min_bytes: Taken at least.

    Raises:
        NotReady: There is no room (``storage_full``).
    """

    def __init__(
        self,
        path: Path,
        *,
        take: Callable[[int], None],
        keep: Callable[[str, int], None],
        clock: Callable[[], float],
        min_bytes: int = 0,
    ) -> None:
        self._path = path
        self._take = take
        self._keep = keep
        self._clock = clock
        self._partial = path.with_name(f"{_PARTIAL}{secrets.token_hex(8)}")
        self._num_taken = 0
        self._ended = False
        self.num_bytes = 0
        with _no_room_is_not_ready():
            self._file = os.fdopen(os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        try:
            self._grow_to(min_bytes)
        except NotReady:
            self.abort()
            raise

    def write(self, data: bytes | memoryview) -> None:
        """Adds to the file.

        Raises:
            NotReady: There is no room (``storage_full``).
        """
        self._grow_to(self.num_bytes + len(data))
        self.num_bytes += len(data)
        with _no_room_is_not_ready():
            self._file.write(data)

    def commit(self) -> str:
        """Puts the file on the disk, whole, and returns its id. Where it raises, call `abort`.

        Raises:
            NotReady: There is no room (``storage_full``).
        """
        with _no_room_is_not_ready():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            now_s = self._clock()
            os.utime(self._partial, (now_s, now_s))
            self._partial.rename(self._path)
        self._keep(self._path.name, self._num_taken)
        self._ended = True
        return self._path.name

    def abort(self) -> None:
        """Gives the file up. Harmless after `commit` and after itself."""
        if self._ended:
            return
        self._ended = True
        try:
            with contextlib.suppress(OSError):
                self._file.close()  # may have to write what is left, to a disk that is full
            self._partial.unlink(missing_ok=True)
        finally:
            self._take(-self._num_taken)

    def _grow_to(self, num_bytes: int) -> None:
        """Takes what such a length needs beyond what was taken."""
        more = num_bytes - self._num_taken
        if more > 0:
            self._take(more)
            self._num_taken += more

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.abort()


@contextlib.contextmanager
def _no_room_is_not_ready() -> Generator[None]:
    """The disk may be full, or this user's part of it, before the store is."""
    try:
        yield
    except OSError as failure:
        if failure.errno in _FULL:
            raise _full() from failure
        raise


def _full() -> NotReady:
    return NotReady("The server's storage for files is full. Try again later.", code="storage_full", retry_after_s=60.0)
