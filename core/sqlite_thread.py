"""One SQLite file and the one thread that works on it: what stores share that must not block an event loop."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class SqliteThread:
    """Transactions one after the other. Methods are for one event loop. A call that is cancelled is still done.

    Args:
        connect: Opens the file; called in the thread, at the first use and again after it failed.
        name: Of the thread.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], *, name: str) -> None:
        self._connect = connect
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._connection: sqlite3.Connection | None = None

    async def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs work in a transaction, which is committed when this returns.

        Raises:
            Whatever ``connect`` and ``work`` raise; then nothing was changed.
        """
        return await self.run(lambda: self.in_transaction(work))

    async def run(self, work: Callable[[], T]) -> T:
        """Runs work in the thread, outside of transactions."""
        # Shielded: who is cancelled must not take work back that still waits for the thread.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))

    async def close(self) -> None:
        """Finishes what was begun and closes the file. The last call."""

        def close() -> None:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

        await asyncio.get_running_loop().run_in_executor(self._thread, close)
        self._thread.shutdown()

    def connection(self) -> sqlite3.Connection:
        """The open file; for the thread only."""
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def in_transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """As `do`; for the thread only."""
        connection = self.connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # a full disk can have ended it
                connection.execute("ROLLBACK")
            raise
        return result


def open_file(path: Path) -> sqlite3.Connection:
    """Opens a file that only this user may read, made if it is not there; ``BEGIN`` is said by whoever uses it.

    Raises:
        sqlite3.Error: It is no database.
        OSError: It can't be opened.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    return sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)


def write_ahead(connection: sqlite3.Connection) -> None:
    """Puts the file into WAL mode, in which readers and a writer do not wait for each other.

    While another process writes, SQLite refuses the change at once, whatever the connection's timeout; so does a file that two
    processes make at the same time. Beginning a transaction waits for the writer, as the timeout says.

    Args:
        connection: Outside of a transaction.

    Raises:
        sqlite3.Error: The file is no database, or is locked for longer than the connection's timeout.
    """
    until_s = time.monotonic() + connection.execute("PRAGMA busy_timeout").fetchone()[0] / 1e3
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= until_s:
                raise
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")
