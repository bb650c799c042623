"""The folder in which a server keeps jobs and generated files: the operator's, or one that ends with the server."""

from __future__ import annotations

import tempfile
from pathlib import Path

import filelock

from sixfold.core.errors import UsageError
from sixfold.core.object_ids import STORE_ID, new_store_id

_STORE_ID_FILE = "store_id"


class DataFolder:
    """Made when it is first asked for. Used in the event loop.

    Args:
        configured: ``server.data_dir``; None for a temporary folder.
    """

    def __init__(self, configured: Path | None) -> None:
        self._configured = configured
        self._root: Path | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._lock: filelock.FileLock | None = None
        self._store_id: str | None = None

    @property
    def store_id(self) -> str:
        """Names what is kept here, in a configured folder as long as that exists, wherever it is moved.

        Raises:
            UsageError: The folder cannot be used, or its file with the id holds none.
        """
        if self._store_id is None:
            self._store_id = new_store_id() if self._configured is None else self._kept_store_id()
        return self._store_id

    def of(self, name: str) -> Path:
        """The folder of one modality, for its eyes only.

        Raises:
            UsageError: It cannot be made, or another server uses it.
        """
        if self._root is None:
            self._root = self._open()
        folder = self._root / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def close(self) -> None:
        """Removes a temporary folder, and lets other servers have a configured one."""
        if self._lock is not None:
            self._lock.release()
        if self._temporary is not None:
            self._temporary.cleanup()
        self._root = self._lock = self._temporary = self._store_id = None

    def _kept_store_id(self) -> str:
        self._root = self._root or self._open()
        path = self._root / _STORE_ID_FILE
        try:
            if not path.exists():
                fresh = path.with_suffix(".new")
                fresh.write_text(new_store_id())
                fresh.replace(path)
            found = path.read_text().strip()
        except OSError as error:
            raise UsageError(
                f"server.data_dir: {path} cannot be written or read: {error.strerror or error}. "
                "Make room, or choose a folder that this user may write to."
            ) from error
        if not STORE_ID.fullmatch(found):
            raise UsageError(
                f"server.data_dir: {path} holds {found[:40]!r}, which is no id of a store. Write the eight characters back that "
                "the ids of its files and jobs have in common, or remove the file: gateways then no longer find these."
            )
        return found

    def _open(self) -> Path:
        if self._configured is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="sixfold-", ignore_cleanup_errors=True)
            return Path(self._temporary.name)
        root = self._configured
        lock = filelock.FileLock(root / ".lock", mode=0o600)
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UsageError(
                f"server.data_dir: another server uses {root}. Give this one a folder of its own."
            ) from None
        except OSError as error:
            raise UsageError(
                f"server.data_dir: {root} cannot be used: {error.strerror or error}. "
                "Choose a folder that this user may write to."
            ) from error
        self._lock = lock
        return root
