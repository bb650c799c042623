"""Brings each batch from its file to its results, over restarts, cancellation and the end of its window.

A batch is a row of states, each of which is on the disk before what follows it begins:

    validating -> in_progress -> finalizing -> completed, expired
              \\-> failed     \\-> cancelling -> cancelled      (failed, too, with what was answered, after a defect)

Each line has at most one outcome in the store (the first one stays), and the result files are written from the store alone,
once no line runs any more. So it does not matter where a server ends: the next one goes on in the state that it finds, asks
for the lines without an outcome, and writes the same files.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from sixfold.core.batches.ledger import Batches, Files
from sixfold.core.batches.lines import Scan, scan
from sixfold.core.batches.outcomes import OutcomeStore
from sixfold.core.batches.records import (
    CANCELLED,
    CANCELLING,
    COMPLETED,
    ENDED,
    EXPIRED,
    FAILED,
    FINALIZING,
    IN_PROGRESS,
    OPEN,
    VALIDATING,
    BatchRecord,
    LineError,
)
from sixfold.core.batches.results import ResultWriter
from sixfold.core.batches.row import RowRunner, Sleep
from sixfold.core.errors import NotFound, NotReady
from sixfold.core.jobs import Job
from sixfold.core.serving.settings import ServerSettings

logger = logging.getLogger(__name__)

_SWEEP_EVERY_S = 5.0
_SWEEPS_PER_REMOVAL = 12
"""Removal asks the disk; the end of windows only looks at what runs."""
_FULL_PAUSE_S = 10.0
_DEFECT = LineError(
    code="internal_error", message="The server made a mistake with this batch. Tell the operator; the log says more."
)


class _Live:
    """A batch that this process works on. Owner: its task; the runner sets ``stop``."""

    def __init__(self, expires_s: float) -> None:
        self.expires_s = expires_s
        self.stop = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class BatchRunner:
    """The batches of one server. Made and used in the serving loop.

    Args:
        batches: Their records.
        files: Input and results.
        outcomes: Of their lines; opened before.
        rows: Runs a line.
        settings: Of the server.
        clock: Unix seconds.
        sleep: ``asyncio.sleep``, or a fake.
    """

    def __init__(
        self,
        batches: Batches,
        files: Files,
        outcomes: OutcomeStore,
        rows: RowRunner,
        settings: ServerSettings,
        *,
        clock: Callable[[], float],
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._batches = batches
        self._files = files
        self._outcomes = outcomes
        self._rows = rows
        self._results = ResultWriter(batches, files, outcomes, clock)
        self._settings = settings
        self._clock = clock
        self._sleep = sleep
        self._live: dict[str, _Live] = {}
        self._sweeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Takes up the batches that a former server left."""
        open_ones = await self._batches.open_ones()
        for batch_id in await self._outcomes.batch_ids() - {job.id for job in open_ones}:
            await self._outcomes.delete(batch_id)  # its files are written
        await self._files.remove_orphans()
        for job in open_ones:
            self.start(job)
        self._sweeper = asyncio.create_task(self._sweep(), name="batch-expiry")

    async def close(self) -> None:
        """Stops; what has not ended is taken up by the next server."""
        tasks = [live.task for live in self._live.values() if live.task is not None]
        if self._sweeper is not None:
            tasks.append(self._sweeper)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def start(self, job: Job) -> None:
        """Works on a batch that is stored."""
        live = self._live[job.id] = _Live(BatchRecord.of(job).expires_s)
        live.task = asyncio.create_task(self._run(job.id, live), name=job.id)

    async def cancel(self, batch_id: str, *, tenant: str) -> Job:
        """Begins to end a batch; one that has ended, or is ending, stays as it is.

        Raises:
            NotFound: There is none of this id and owner.
        """
        job = await self._batches.change(
            batch_id,
            (VALIDATING, IN_PROGRESS),
            CANCELLING,
            tenant=tenant,
            edit=lambda record: msgspec.structs.replace(record, ends_as=CANCELLED),
        )
        live = self._live.get(batch_id)
        if job is not None and live is not None:
            live.stop.set()
        return job or await self._batches.get(batch_id, tenant=tenant)

    def end_overdue(self) -> None:
        """Ends batches whose window is over."""
        now_s = self._clock()
        for live in self._live.values():
            if now_s >= live.expires_s:
                live.stop.set()

    async def remove_expired(self) -> None:
        """Removes files and ended batches whose time is over, but no file that an open batch reads."""
        open_ones = await self._batches.open_ones()
        await self._files.remove_expired({BatchRecord.of(job).input_file_id for job in open_ones})
        await self._batches.remove_ended(self._settings.batches.keep_files_s)

    async def _sweep(self) -> None:
        for number in itertools.count():
            self.end_overdue()
            try:
                if number % _SWEEPS_PER_REMOVAL == 0:
                    await self.remove_expired()
            except Exception:  # the border of the task: a full disk today must not end expiry for ever
                logger.exception("expired files could not be removed")
            await self._sleep(_SWEEP_EVERY_S)

    # One batch.

    async def _run(self, batch_id: str, live: _Live) -> None:
        try:
            try:
                await self._insist(batch_id, lambda: self._advance(batch_id, live))
            except Exception:  # the border of the task: a defect must not leave a batch open for ever
                logger.exception("batch %s: a defect ended it", batch_id)
                await self._insist(batch_id, lambda: self._fail(batch_id, (_DEFECT,)))
        except Exception:
            logger.exception("batch %s: it is left as it is for the next start", batch_id)
        finally:
            del self._live[batch_id]

    async def _insist(self, batch_id: str, act: Callable[[], Awaitable[None]]) -> None:
        """Does what may be done again, until no full disk or busy file stops it."""
        while not await self._passes(batch_id, act):
            await self._sleep(_FULL_PAUSE_S)

    async def _passes(self, batch_id: str, act: Callable[[], Awaitable[None]]) -> bool:
        try:
            await act()
            return True
        except* (NotReady, OSError, sqlite3.Error) as failures:
            logger.warning("batch %s: it cannot go on, tried again: %s", batch_id, failures.exceptions)
        return False

    async def _advance(self, batch_id: str, live: _Live) -> None:
        """Brings a batch to its end from whatever state it is in."""
        job = await self._batches.get(batch_id, tenant=None)
        if job.state in ENDED:
            await self._outcomes.delete(batch_id)
            return
        found = await self._validate(job)
        if found is not None:
            await self._work(await self._batches.get(batch_id, tenant=None), found, live)
            await self._finish(batch_id, found)

    async def _validate(self, job: Job) -> Scan | None:
        """Reads the input file; None where the batch has ended with that."""
        record = BatchRecord.of(job)
        max_lines, max_line_bytes = self._settings.batches.max_lines, self._settings.max_body_bytes
        try:
            source = await self._source(job)
            if job.state != VALIDATING:  # it was found right, maybe under larger bounds than this server's
                max_lines = max(max_lines, record.num_lines)
                max_line_bytes = max(max_line_bytes, (await asyncio.to_thread(source.stat)).st_size)
            found = await asyncio.to_thread(
                scan,
                source,
                endpoint=record.endpoint,
                max_lines=max_lines,
                max_line_bytes=max_line_bytes,
            )
        except NotFound as failure:
            found = Scan(lines=(), errors=(LineError(code="file_not_found", message=failure.message),), model=None)
        if found.errors and job.state in (VALIDATING, IN_PROGRESS):
            await self._fail(job.id, found.errors)
            return None
        await self._batches.change(
            job.id,
            (VALIDATING,),
            IN_PROGRESS,
            edit=lambda record: msgspec.structs.replace(record, num_lines=len(found.lines), model=found.model),
        )
        return found

    async def _source(self, job: Job) -> Path:
        source = await self._files.peek(BatchRecord.of(job).input_file_id, tenant=job.owner)
        if source is None:
            raise NotFound("The input file is not there any more.")
        return self._files.path(source)

    async def _work(self, job: Job, found: Scan, live: _Live) -> None:
        """Runs the lines that have no outcome, until all have one or the batch is to stop."""
        if job.state != IN_PROGRESS or self._clock() >= live.expires_s:
            return
        work = asyncio.create_task(self._run_lines(job, found), name=f"{job.id}-lines")
        stop = asyncio.create_task(live.stop.wait(), name=f"{job.id}-stop")
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended_by_itself = work.done()
            for task in (work, stop):
                task.cancel()
            await asyncio.gather(work, stop, return_exceptions=True)
        if ended_by_itself:
            work.result()  # raises a defect

    async def _run_lines(self, job: Job, found: Scan) -> None:
        path = await self._source(job)
        done = await self._outcomes.lines(job.id)
        # No more lines are begun than may run, those that wait to be tried again included.
        begun = asyncio.Semaphore(self._settings.batches.max_rows)
        async with asyncio.TaskGroup() as group:
            for ref in found.lines:
                if ref.number in done:
                    continue
                await begun.acquire()
                await self._rows.wait_for_room()
                model = await self._rows.model_of(path, ref)
                await self._rows.gate.enter(model)
                # Nothing may be awaited here: the place at the gate is the row's from now on.
                group.create_task(self._rows.run(job, path, ref, leave=begun.release, place=model))

    async def _finish(self, batch_id: str, found: Scan) -> None:
        """Writes the results of a batch of which no line runs any more."""
        job = await self._batches.get(batch_id, tenant=None)
        if job.state == IN_PROGRESS:
            is_complete = len(await self._outcomes.lines(batch_id)) == len(found.lines)
            ends_as = COMPLETED if is_complete else EXPIRED
            changed = await self._batches.change(
                batch_id,
                (IN_PROGRESS,),
                FINALIZING,
                edit=lambda record: msgspec.structs.replace(record, ends_as=ends_as),
            )
            job = changed or await self._batches.get(batch_id, tenant=None)  # cancelled at the same moment
        if BatchRecord.of(job).ends_as == EXPIRED:
            await self._results.mark_expired(job, await self._source(job), found.lines)
        await self._results.write(job)

    async def _fail(self, batch_id: str, errors: tuple[LineError, ...]) -> None:
        """Ends a batch; what was answered until then is in its output file."""

        def edit(record: BatchRecord) -> BatchRecord:
            return msgspec.structs.replace(record, errors=errors, ends_as=FAILED)

        if await self._batches.change(batch_id, (VALIDATING,), FAILED, edit=edit) is None:
            job = await self._batches.change(batch_id, OPEN, FINALIZING, edit=edit)
            if job is not None:
                await self._results.write(job)
