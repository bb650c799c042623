"""A real SQLite connection whose next acts fail, or wait, as a test says."""

from __future__ import annotations

import sqlite3
import threading
from typing import Any

import pytest


class Faults:
    """What comes; one per test.

    Args:
        monkeypatch: Of the test.
        name: Part of the names of the files that it is for.

    Attributes:
        num_commits: So many of the next commits fail for want of room.
        ends_transaction: Whether such a failure has rolled back already, as SQLite may do.
        may_begin: Transactions wait for it.
        waits: Set when one does.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str = "") -> None:
        self.num_commits = 0
        self.ends_transaction = False
        self.may_begin = threading.Event()
        self.may_begin.set()
        self.waits = threading.Event()
        faults = self

        class Faulty(sqlite3.Connection):
            def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
                if sql.startswith("BEGIN") and not faults.may_begin.is_set():
                    faults.waits.set()
                    assert faults.may_begin.wait(20.0)
                if sql == "COMMIT" and faults.num_commits:
                    faults.num_commits -= 1
                    if faults.ends_transaction:
                        super().execute("ROLLBACK")
                    raise sqlite3.OperationalError("database or disk is full")
                return super().execute(sql, *rest)

        connect = sqlite3.connect

        def connect_faulty(path: Any, **rest: Any) -> sqlite3.Connection:
            return connect(path, factory=Faulty if name in str(path) else sqlite3.Connection, **rest)

        monkeypatch.setattr(sqlite3, "connect", connect_faulty)
