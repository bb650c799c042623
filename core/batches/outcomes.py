"""Keeps the answer of each line of the batches that run, one each, whatever happens how often."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sixfold.core.errors import UsageError
from sixfold.core.files import FileStore
from sixfold.core.sqlite_thread import SqliteThread, open_file, write_ahead

_SCHEMA = """
CREATE TABLE IF NOT EXISTS outcomes (
    batch_id TEXT NOT NULL,
    line INTEGER NOT NULL,
    succeeded INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (batch_id, line)
);
CREATE INDEX IF NOT EXISTS outcomes_by_kind ON outcomes (batch_id, succeeded, line);
"""

_PAGES_AT_ONCE = 2048
"""Given back to the disk while others wait: some milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a line.

    Attributes:
        line: Its number.
        succeeded: Whether it belongs to the output file; else to the error file.
        data: The line of that file, without its end.
    """

    line: int
    succeeded: bool
    data: bytes


class OutcomeStore:
    """Outcomes by batch and line; the first of a line stays. Methods are for one event loop; a thread of its own works.

    A call that is cancelled is still done. What `add` has returned from is on the disk.

    Args:
        path: The database file; made if it is not there, readable by this user only.
    """

    def __init__(self, path: Path) -> None:
        self._database = SqliteThread(lambda: _connect(path), name="outcomes")
        self.num_bytes = 0

    async def open(self) -> None:
        """Opens the file; before any other call.

        Raises:
            UsageError: It is no database of ours.
        """

        def measure(connection: sqlite3.Connection) -> int:
            return int(connection.execute("SELECT coalesce(sum(length(data)), 0) FROM outcomes").fetchone()[0])

        self.num_bytes = await self._database.do(measure)

    async def close(self) -> None:
        """Finishes what was begun and closes the file. The last call."""
        await self._database.close()

    async def add(self, batch_id: str, outcomes: Sequence[Outcome]) -> None:
        """Keeps outcomes of lines that have none, all or nothing; those of other lines are dropped."""

        def add(connection: sqlite3.Connection) -> int:
            num_added = 0
            for each in outcomes:
                done = connection.execute(
                    "INSERT OR IGNORE INTO outcomes VALUES (?, ?, ?, ?)",
                    (batch_id, each.line, each.succeeded, each.data),
                )
                if done.rowcount:
                    num_added += len(each.data)
            return num_added

        await self._database.run(lambda: self._count(add))

    async def lines(self, batch_id: str) -> frozenset[int]:
        """The lines that have an outcome."""

        def read(connection: sqlite3.Connection) -> frozenset[int]:
            rows = connection.execute("SELECT line FROM outcomes WHERE batch_id = ?", (batch_id,))
            return frozenset(row[0] for row in rows)

        return await self._database.do(read)

    async def counts(self, batch_id: str) -> tuple[int, int]:
        """How many lines succeeded, and how many failed."""

        def read(connection: sqlite3.Connection) -> tuple[int, int]:
            rows = dict(
                connection.execute(
                    "SELECT succeeded, count(*) FROM outcomes WHERE batch_id = ? GROUP BY succeeded", (batch_id,)
                ).fetchall()
            )
            return rows.get(1, 0), rows.get(0, 0)

        return await self._database.do(read)

    async def write(
        self, batch_id: str, files: FileStore, *, succeeded: bool, on_line: Callable[[bytes], None]
    ) -> tuple[str, int] | None:
        """Writes the outcomes of one sort into a file, in the order of the lines.

        Args:
            batch_id: Whose.
            files: Where to.
            succeeded: Which.
            on_line: Called with each, in another thread.

        Returns:
            The file's id in ``files`` and its length; None where there are no such outcomes.

        Raises:
            NotReady: There is no room.
        """

        def write(connection: sqlite3.Connection) -> tuple[str, int] | None:
            rows = connection.execute(
                "SELECT data FROM outcomes WHERE batch_id = ? AND succeeded = ? ORDER BY line", (batch_id, succeeded)
            )
            with files.create(".jsonl", from_reserve=True) as file:
                for (data,) in rows:
                    on_line(data)
                    file.write(data + b"\n")
                return (file.commit(), file.num_bytes) if file.num_bytes else None

        return await self._database.do(write)

    async def delete(self, batch_id: str) -> None:
        """Forgets a batch's outcomes."""

        def delete(connection: sqlite3.Connection) -> int:
            gone = connection.execute(
                "SELECT coalesce(sum(length(data)), 0) FROM outcomes WHERE batch_id = ?", (batch_id,)
            ).fetchone()[0]
            connection.execute("DELETE FROM outcomes WHERE batch_id = ?", (batch_id,))
            return -int(gone)

        await self._database.run(lambda: self._count(delete))
        while await self._database.run(self._shrink):
            pass

    async def batch_ids(self) -> frozenset[str]:
        """The batches that have outcomes."""

        def read(connection: sqlite3.Connection) -> frozenset[str]:
            return frozenset(row[0] for row in connection.execute("SELECT DISTINCT batch_id FROM outcomes"))

        return await self._database.do(read)

    def _count(self, change: Callable[[sqlite3.Connection], int]) -> None:
        """Does what returns how many bytes it added; they count once it is committed."""
        self.num_bytes += self._database.in_transaction(change)

    def _shrink(self) -> bool:
        """Gives some of the free part of the file back to the disk; whether there is more."""
        connection = self._database.connection()
        try:
            before = _num_free_pages(connection)
            # A step of it at a time is done, so all must be fetched.
            connection.execute(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})").fetchall()
            return 0 < _num_free_pages(connection) < before
        except sqlite3.Error:
            return False  # the room is used again by the next outcomes


def _num_free_pages(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA freelist_count").fetchone()[0])


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = open_file(path)
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        write_ahead(connection)
        # A line that was answered is not computed again after a power cut.
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(_SCHEMA)
    except (sqlite3.Error, OSError) as error:
        raise UsageError(f"The batch results in {path} cannot be used: {error}. Repair or remove the file.") from error
    return connection
