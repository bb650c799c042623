"""The batches and files of all keys: their records, their bytes, and each change as one act."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from sixfold.core.batches.records import BATCH, ENDED, FILE, OPEN, BatchRecord, FileRecord
from sixfold.core.errors import InvalidRequest, NotFound
from sixfold.core.files import FileStore
from sixfold.core.jobs import Job, JobStore, Order
from sixfold.core.serving.api import Upload

_PAGE = 1000


class Files:
    """Uploaded files and results. Used in the event loop.

    Args:
        jobs: Keeps the records; shared with `Batches`.
        store: Keeps the bytes.
        clock: Unix seconds.
    """

    def __init__(self, jobs: JobStore, store: FileStore, clock: Callable[[], float]) -> None:
        self._jobs = jobs
        self.store = store
        self._clock = clock

    async def add(self, record: FileRecord, *, tenant: str, purpose: str, file_id: str | None = None) -> Job:
        """Keeps a file whose bytes are in the store.

        Args:
            record: New.
            tenant: The owner.
            purpose: What it is for.
            file_id: Where it follows from something else; a second file of one id is dropped.
        """
        file_id = file_id or self._jobs.new_id(FILE).replace("_", "-", 1)
        job = await self._jobs.get(file_id, owner=tenant)
        if job is not None:
            await asyncio.to_thread(self.store.delete, record.stored_id)
            return job
        await self._jobs.create(FILE, tenant, record.payload(), purpose, job_id=file_id)
        job = await self._jobs.get(file_id, owner=tenant)
        assert job is not None, "it was stored a moment ago"
        return job

    async def get(self, file_id: str, *, tenant: str, param: str = "file_id") -> Job:
        """The file of this id and owner.

        Raises:
            NotFound: There is none, or it has expired.
        """
        job = await self.peek(file_id, tenant=tenant)
        if job is None or _is_over(FileRecord.of(job).expires_s, self._clock()):
            raise NotFound(f"There is no file {file_id[:80]!r}. It may have been deleted or have expired.", param=param)
        return job

    async def peek(self, file_id: str, *, tenant: str) -> Job | None:
        """As `get`, also where it has expired and is still used; None if there is none."""
        job = await self._jobs.get(file_id, owner=tenant)
        return job if job is not None and job.kind == FILE else None

    def path(self, job: Job) -> Path:
        """Where its bytes are.

        Raises:
            NotFound: They are gone.
        """
        path = self.store.path(FileRecord.of(job).stored_id)
        if path is None:
            raise NotFound(f"The file {job.id!r} is not there any more.", param="file_id")
        return path

    async def upload(self, file_id: str, *, tenant: str, max_bytes: int) -> Upload:
        """A file as a form would have brought it, for a line that names it.

        Raises:
            InvalidRequest: There is none of this owner, or it is larger than ``max_bytes``; nothing was read then.
        """
        try:
            job = await self.get(file_id, tenant=tenant)
            path = self.path(job)
        except NotFound as failure:
            raise InvalidRequest(f"{failure.message} Upload it with the purpose 'user_data'.") from None
        record = FileRecord.of(job)
        if record.num_bytes > max_bytes:
            raise InvalidRequest(
                f"The file {file_id!r} is larger than the {max_bytes} bytes that are left of what the files of one request may "
                "have (server.max_upload_bytes). Send less in one line."
            )
        return Upload(record.filename, "application/octet-stream", await asyncio.to_thread(path.read_bytes))

    async def page(
        self, *, tenant: str, limit: int, after: str | None, order: Order, purpose: str | None
    ) -> tuple[Job, ...]:
        """Files of this owner, one more than ``limit`` if there are more."""
        states = None if purpose is None else (purpose,)
        return await self._jobs.list(owner=tenant, kind=FILE, limit=limit + 1, after=after, order=order, states=states)

    async def delete(self, job: Job) -> None:
        """Removes a file: first its bytes, so that no record is missing of bytes that are there."""
        await asyncio.to_thread(self.store.delete, FileRecord.of(job).stored_id)
        await self._jobs.delete(job.id, owner=None)

    async def remove_expired(self, in_use: Collection[str]) -> None:
        """Removes files whose time is over, but none of the ids ``in_use``."""
        for job in await all_of(self._jobs, FILE, None, due=("expires_s", self._clock())):
            if job.id not in in_use:
                await self.delete(job)

    async def num(self, *, tenant: str, limit: int) -> int:
        """How many files this owner has, results included; counts up to ``limit``."""
        return await self._jobs.count(owner=tenant, kind=FILE, limit=limit)

    async def remove_orphans(self) -> None:
        """Removes bytes of which no record is left: an earlier server ended between the two."""
        known = {FileRecord.of(job).stored_id for job in await all_of(self._jobs, FILE, None)}
        for stored_id in self.store.ids():
            if stored_id not in known:
                await asyncio.to_thread(self.store.delete, stored_id)


class Batches:
    """The records of batches. Used in the event loop.

    Args:
        jobs: Keeps them; shared with `Files`.
        clock: Unix seconds.
    """

    def __init__(self, jobs: JobStore, clock: Callable[[], float]) -> None:
        self._jobs = jobs
        self._clock = clock
        # Between reading a record and writing it back no other change may come.
        self._changing = asyncio.Lock()

    async def create(self, record: BatchRecord, *, tenant: str, state: str) -> Job:
        """Stores a new batch."""
        batch_id = await self._jobs.create(BATCH, tenant, record.payload(), state)
        return await self.get(batch_id, tenant=tenant)

    async def get(self, batch_id: str, *, tenant: str | None) -> Job:
        """The batch of this id and owner; of anyone for None.

        Raises:
            NotFound: There is none.
        """
        job = await self._jobs.get(batch_id, owner=tenant)
        if job is None or job.kind != BATCH:
            raise NotFound(f"There is no batch {batch_id[:80]!r}.", param="batch_id")
        return job

    async def page(self, *, tenant: str, limit: int, after: str | None) -> tuple[Job, ...]:
        """Batches of this owner, newest first, one more than ``limit`` if there are more."""
        return await self._jobs.list(owner=tenant, kind=BATCH, limit=limit + 1, after=after)

    async def open_ones(self) -> list[Job]:
        """Batches of all owners that have not ended, oldest first."""
        return await all_of(self._jobs, BATCH, OPEN)

    async def num_open(self, *, tenant: str, limit: int) -> int:
        """How many batches of this owner have not ended; counts up to ``limit``."""
        return await self._jobs.count(owner=tenant, kind=BATCH, limit=limit, states=OPEN)

    async def num(self, *, tenant: str, limit: int) -> int:
        """How many batches this owner has, ended ones included; counts up to ``limit``."""
        return await self._jobs.count(owner=tenant, kind=BATCH, limit=limit)

    async def change(
        self,
        batch_id: str,
        from_states: Collection[str],
        to_state: str,
        *,
        tenant: str | None = None,
        edit: Callable[[BatchRecord], BatchRecord] = lambda record: record,
    ) -> Job | None:
        """Changes the state and the record as one act; None if it is in none of ``from_states``.

        Args:
            batch_id: The batch.
            from_states: Where it must be.
            to_state: Where it shall be.
            tenant: Whose it must be; None for anyone's.
            edit: Makes the new record of the present one.
        """
        async with self._changing:
            job = await self._jobs.get(batch_id, owner=tenant)
            if job is None or job.kind != BATCH or job.state not in from_states:
                return None
            record = edit(BatchRecord.of(job))
            times_s = {
                to_state: self._clock(),
                **record.times_s,
            }  # a state that it comes to again began at the first time
            record = msgspec.structs.replace(record, times_s=times_s)
            return await self._jobs.transition(batch_id, from_states, to_state, owner=tenant, payload=record.payload())

    async def remove_ended(self, keep_s: float) -> None:
        """Forgets batches that ended longer ago than that."""
        for job in await all_of(self._jobs, BATCH, ENDED, changed_by_s=self._clock() - keep_s):
            if self._clock() - job.updated_s >= max(keep_s, BatchRecord.of(job).keep_files_s):
                await self._jobs.delete(job.id, owner=None)


async def all_of(
    jobs: JobStore,
    kind: str,
    states: Collection[str] | None,
    *,
    changed_by_s: float | None = None,
    due: tuple[str, float] | None = None,
) -> list[Job]:
    """Every job of a kind, of all owners, oldest first; narrowed as by `JobStore.list`."""
    found: list[Job] = []
    after: str | None = None
    while True:
        page = await jobs.list(
            owner=None,
            kind=kind,
            limit=_PAGE,
            after=after,
            order="asc",
            states=states,
            changed_by_s=changed_by_s,
            due=due,
        )
        found.extend(page)
        if len(page) < _PAGE:
            return found
        after = page[-1].id


def _is_over(expires_s: float | None, now_s: float) -> bool:
    return expires_s is not None and now_s >= expires_s
