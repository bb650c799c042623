"""Files that several processes open at once."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sixfold.core.sqlite_thread import write_ahead


class Watched(sqlite3.Connection):
    """Calls back when a transaction is about to be begun."""

    on_begin: Callable[[], object] = staticmethod(lambda: None)

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if sql.startswith("BEGIN"):
            self.on_begin()
        return super().execute(sql, parameters)


def opened(path: Path, timeout_s: float) -> Watched:
    return sqlite3.connect(path, timeout=timeout_s, isolation_level=None, factory=Watched)


def test_a_file_that_another_process_is_making_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    with closing(opened(path, 5.0)) as first, closing(opened(path, 5.0)) as second:
        first.execute("BEGIN IMMEDIATE")
        second.on_begin = lambda: first.execute("COMMIT")
        write_ahead(second)
        assert second.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert not first.in_transaction


def test_a_file_that_stays_locked_is_given_up_after_the_timeout(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    with closing(opened(path, 5.0)) as first, closing(opened(path, 0.0)) as second:
        first.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            write_ahead(second)


def test_a_file_that_somebody_goes_on_reading_is_given_up_after_the_timeout(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with closing(opened(path, 5.0)) as first, closing(opened(path, 0.0)) as second:
        first.execute("CREATE TABLE t (x)")
        first.execute("BEGIN")
        first.execute("SELECT * FROM t").fetchall()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            write_ahead(second)


def test_what_is_no_database_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "text.db"
    path.write_text("not a database " * 100)
    with closing(opened(path, 5.0)) as connection, pytest.raises(sqlite3.DatabaseError, match="not a database"):
        write_ahead(connection)
