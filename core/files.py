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
        assert _SUFFIX.fullmatch(suffix), f"{suffix!r} is no suffix such as '.png'"
        self.expire()
        file_id = secrets.token_urlsafe(_ID_BYTES) + suffix
        with self._lock:
            if self._num_bytes + len(data) > self._max_bytes:
                raise NotReady(
                    "The server's storage for files is full. Try again later.", code="storage_full", retry_after_s=60.0
                )
            self._sizes[file_id] = len(data)
            self._num_bytes += len(data)
        try:
            self._write(file_id, data)
        except BaseException:
            self._forget(file_id)
            raise
        return file_id

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

    def _write(self, file_id: str, data: bytes) -> None:
        partial = self._root / f"{_PARTIAL}{secrets.token_hex(8)}"
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            now_s = self._clock()
            os.utime(partial, (now_s, now_s))
            partial.rename(self._root / file_id)
        finally:
            partial.unlink(missing_ok=True)

    def _forget(self, file_id: str) -> None:
        with self._lock:
            self._num_bytes -= self._sizes.pop(file_id, 0)
