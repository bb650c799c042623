"""Keeps jobs in one SQLite file, so that they survive a restart and each is run once."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from sixfold.core.errors import InvalidRequest, UsageError
from sixfold.core.object_ids import new_object_id
from sixfold.core.sqlite_thread import SqliteThread, open_file, write_ahead

Order: TypeAlias = Literal["asc", "desc"]

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    owner TEXT NOT NULL,
    state TEXT NOT NULL,
    payload TEXT NOT NULL,
    created_s REAL NOT NULL,
    updated_s REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS jobs_of_owner ON jobs (kind, owner, number);
"""
_COLUMNS = "id, kind, owner, state, payload, created_s, updated_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as it was when it was read.

    Attributes:
        id: Unguessable; begins with the kind.
        kind: The plugin's name for this sort of job.
        owner: `Caller.tenant` of who made it.
        state: A word of the plugin's.
        payload: What else the plugin keeps, as JSON has it.
        created_s: Unix seconds.
        updated_s: Unix seconds of the last change.
    """

    id: str
    kind: str
    owner: str
    state: str
    payload: Mapping[str, Any]
    created_s: float
    updated_s: float


class JobStore:
    """Jobs by id. Methods are for one event loop; the work is done in a thread of its own, one call after the other.

    A call that is cancelled is still done. Where ``owner`` is None, jobs of all owners are meant: for the plugin's own
    work, never for a request.

    Args:
        path: The database file; made if it is not there, readable by this user only.
        clock: Unix seconds.
        store_id: Goes into the ids of its jobs, see `sixfold.core.object_ids`; "" leaves it out.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time, store_id: str = "") -> None:
        self._clock = clock
        self._store_id = store_id
        self._database = SqliteThread(lambda: _connect(path), name="jobs")

    async def open(self) -> None:
        """Opens the file; the first other call does it, too.

        Raises:
            UsageError: It is no database of ours, or of a later version.
        """
        await self._database.do(lambda _connection: None)

    async def close(self) -> None:
        """Finishes what was begun and closes the file. The last call."""
        await self._database.close()

    def new_id(self, kind: str) -> str:
        """An id that nobody can guess."""
        return new_object_id(f"{kind}_", self._store_id)

    async def create(
        self, kind: str, owner: str, payload: Mapping[str, Any], state: str, *, job_id: str | None = None
    ) -> str:
        """Adds a job and returns its id; it is on the disk then.

        Args:
            kind: The plugin's name for this sort of job.
            owner: Whose it is.
            payload: What else to keep.
            state: Where it begins.
            job_id: From `new_id`, for a job that was promised before it is stored; made here unless given.
        """
        job_id = job_id or self.new_id(kind)
        text, now_s = json.dumps(payload), self._clock()
        await self._database.do(
            lambda connection: connection.execute(
                f"INSERT INTO jobs ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (job_id, kind, owner, state, text, now_s, now_s),
            )
        )
        return job_id

    async def get(self, job_id: str, *, owner: str | None) -> Job | None:
        """The job, if there is one of this id and owner."""

        def get(connection: sqlite3.Connection) -> Job | None:
            return _one(connection, job_id, owner)

        return await self._database.do(get)

    async def update(self, job_id: str, *, payload: Mapping[str, Any]) -> bool:
        """Replaces the payload; False if the job is gone. For changes of state see `transition`."""
        text, now_s = json.dumps(payload), self._clock()

        def update(connection: sqlite3.Connection) -> bool:
            done = connection.execute("UPDATE jobs SET payload = ?, updated_s = ? WHERE id = ?", (text, now_s, job_id))
            return done.rowcount == 1

        return await self._database.do(update)

    async def transition(
        self,
        job_id: str,
        from_states: Collection[str],
        to_state: str,
        *,
        owner: str | None = None,
        payload: Mapping[str, Any] | None = None,
    ) -> Job | None:
        """Changes the state if it is one of ``from_states``, as one act; None if it is not, or the job is gone.

        Of several callers that want the same transition one gets the job: so it is run once.

        Args:
            job_id: The job.
            from_states: Where it must be.
            to_state: Where it shall be.
            owner: Whose it must be; None for anyone's.
            payload: Replaces the payload, in the same act.

        Returns:
            The job after the change.
        """
        text, now_s = None if payload is None else json.dumps(payload), self._clock()

        def change(connection: sqlite3.Connection) -> Job | None:
            job = _one(connection, job_id, owner)
            if job is None or job.state not in from_states:
                return None
            connection.execute(
                "UPDATE jobs SET state = ?, payload = coalesce(?, payload), updated_s = ? WHERE id = ?",
                (to_state, text, now_s, job_id),
            )
            return _one(connection, job_id, owner)

        return await self._database.do(change)

    async def list(
        self,
        *,
        owner: str | None,
        kind: str,
        limit: int,
        after: str | None = None,
        order: Order = "desc",
        states: Collection[str] | None = None,
        changed_by_s: float | None = None,
        due: tuple[str, float] | None = None,
    ) -> tuple[Job, ...]:
        """Jobs in the order of their creation, newest first unless told.

        Args:
            owner: Whose jobs.
            kind: Of this kind only.
            limit: How many at most; ask for one more to know whether there are more.
            after: The id of the last job of the page before.
            order: ``"desc"`` for newest first.
            states: In these states only.
            changed_by_s: Those whose last change was at this Unix time or before.
            due: A name in the payload, and what the number there may be at most; those without one are left out.

        Raises:
            InvalidRequest: There is no job ``after`` of this owner.
        """

        def read(connection: sqlite3.Connection) -> tuple[Job, ...]:
            where: list[str] = ["kind = ?"]
            values: list[str | float] = [kind]
            if owner is not None:
                where.append("owner = ?")
                values.append(owner)
            if states is not None:
                where.append(f"state IN ({', '.join('?' * len(states))})")
                values += states
            if changed_by_s is not None:
                where.append("updated_s <= ?")
                values.append(changed_by_s)
            if due is not None:
                where.append("json_extract(payload, ?) <= ?")
                values += [f"$.{due[0]}", due[1]]
            if after is not None:
                if _one(connection, after, owner) is None:
                    raise InvalidRequest("There is no such job to list after.", param="after")
                where.append(f"number {'<' if order == 'desc' else '>'} (SELECT number FROM jobs WHERE id = ?)")
                values.append(after)
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM jobs WHERE {' AND '.join(where)} "
                f"ORDER BY number {'DESC' if order == 'desc' else 'ASC'} LIMIT ?",
                (*values, limit),
            )
            return tuple(map(_job, rows))

        return await self._database.do(read)

    async def count(self, *, owner: str, kind: str, limit: int, states: Collection[str] | None = None) -> int:
        """How many jobs of a kind an owner has, in any of ``states`` where given; counts up to ``limit``."""

        def count(connection: sqlite3.Connection) -> int:
            narrowed = "" if states is None else f" AND state IN ({', '.join('?' * len(states))})"
            row = connection.execute(
                f"SELECT count(*) FROM (SELECT 1 FROM jobs WHERE kind = ? AND owner = ?{narrowed} LIMIT ?)",
                (kind, owner, *(states or ()), limit),
            ).fetchone()
            return int(row[0])

        return await self._database.do(count)

    async def delete(self, job_id: str, *, owner: str | None) -> bool:
        """Removes a job; whether there was one of this id and owner."""

        def delete(connection: sqlite3.Connection) -> bool:
            done = connection.execute("DELETE FROM jobs WHERE id = ? AND owner = coalesce(?, owner)", (job_id, owner))
            return done.rowcount == 1

        return await self._database.do(delete)

    async def delete_unchanged_since(self, kind: str, time_s: float) -> int:
        """Removes the jobs of a kind that were last changed before a Unix time; returns how many."""

        def delete(connection: sqlite3.Connection) -> int:
            return connection.execute("DELETE FROM jobs WHERE kind = ? AND updated_s < ?", (kind, time_s)).rowcount

        return await self._database.do(delete)


def _one(connection: sqlite3.Connection, job_id: str, owner: str | None) -> Job | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM jobs WHERE id = ? AND owner = coalesce(?, owner)", (job_id, owner)
    ).fetchone()
    return None if row is None else _job(row)


def _job(row: tuple[Any, ...]) -> Job:
    job_id, kind, owner, state, payload, created_s, updated_s = row
    return Job(
        id=job_id,
        kind=kind,
        owner=owner,
        state=state,
        payload=json.loads(payload),
        created_s=created_s,
        updated_s=updated_s,
    )


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = open_file(path)
        write_ahead(connection)
        connection.execute("PRAGMA synchronous = FULL")  # a job that was promised survives a power cut
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
    except (sqlite3.Error, OSError) as error:
        raise UsageError(f"The jobs in {path} cannot be used: {error}. Repair or remove the file.") from error
    if version > _SCHEMA_VERSION:
        connection.close()
        raise UsageError(
            f"{path} was written by a later version of Sixfold. Use that version, or another server.data_dir."
        )
    return connection
