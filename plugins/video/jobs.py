"""Runs video jobs beside HTTP calls: each is followed by one task, stored at every change of state, and run again after a
restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from sixfold.core.errors import NotFound, NotReady, QueueFull, RequestCancelled, RequestError, WorkerDied
from sixfold.core.jobs import Job, JobStore, Order
from sixfold.core.messages import Finished, Increment
from sixfold.core.serving.api import BackgroundRun, Services
from sixfold.plugins.video.assets import VideoAssets
from sixfold.plugins.video.messages import VideoChunk, VideoFile, VideoProgress
from sixfold.plugins.video.record import (
    COMPLETED,
    DELETED,
    FAILED,
    IN_PROGRESS,
    KIND,
    OPEN,
    QUEUED,
    VISIBLE,
    JobError,
    VideoRecord,
)

OPERATION = "video"

_LOG = logging.getLogger(__name__)

_DEFECT = JobError(code="internal_error", message="The server made a mistake; its log says which.")

_MAX_RUNS = 2
_SWEEP_EVERY_S = 60.0
_PAGE = 100


class _Live:
    """A job that this process runs. Owner: its task; `VideoJobs` reads it and cancels ``run``."""

    def __init__(self) -> None:
        self.run: BackgroundRun | None = None
        self.progress = 0
        self.task: asyncio.Task[None] | None = None


class VideoJobs:
    """The jobs of one server. Made and used in the serving loop.

    Args:
        services: Of the modality.
        store: Of the jobs; opened and closed here.
        assets: Their files.
        sleep: ``asyncio.sleep``, or a fake.
    """

    def __init__(
        self,
        services: Services,
        store: JobStore,
        assets: VideoAssets,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._services = services
        self._store = store
        self._assets = assets
        self._sleep = sleep
        self._live: dict[str, _Live] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._removals: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Takes up the jobs that a former server left: those that had not ended are run again, once."""
        await self._store.open()
        for job in await self._all(DELETED):
            await self._purge(job)
        for job in await self._all(*OPEN):
            await self._take_up(job)
        self._sweeper = asyncio.create_task(self._sweep(), name="video-expiry")

    async def close(self) -> None:
        """Stops following; what has not ended is taken up by the next server."""
        await asyncio.gather(*self._removals, return_exceptions=True)
        tasks = [live.task for live in self._live.values() if live.task is not None]
        if self._sweeper is not None:
            tasks.append(self._sweeper)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._store.close()

    async def create(self, record: VideoRecord, *, tenant: str) -> Job:
        """Submits the request and stores its job.

        Args:
            record: New; its request may hold a reference's bytes, which go to a file.
            tenant: The owner.

        Raises:
            RequestError: The model does not take the request now (no job is made), or there is no room for files.
        """
        run = self._services.background(
            record.model, OPERATION, record.request, tenant=tenant, priority=record.priority
        )
        try:
            record = await self._assets.store_reference(record)
            job_id = await self._store.create(KIND, tenant, record.payload(), QUEUED)
        except BaseException:
            run.cancel()
            raise
        self._follow(job_id, record, tenant, run)
        job = await self._store.get(job_id, owner=tenant)
        assert job is not None, "it was stored a moment ago"
        return job

    async def get(self, job_id: str, *, tenant: str) -> Job:
        """The job of this id and owner.

        Raises:
            NotFound: There is none, or it has expired.
        """
        job = await self._store.get(job_id, owner=tenant)
        if job is None or job.kind != KIND or job.state not in VISIBLE or self._expired(job):
            raise _not_found(job_id)
        return job

    async def ended(self, job: Job) -> Job:
        """Waits for the end of a job that was created here; whoever stops waiting has it removed.

        Raises:
            RequestError: It failed, or was deleted.
        """
        live = self._live.get(job.id)
        try:
            if live is not None and live.task is not None:
                await asyncio.shield(live.task)
        except asyncio.CancelledError:
            # In a task of its own, as this one ends. Whoever waited makes another job, or none.
            removal = asyncio.create_task(self.delete(job.id, tenant=job.owner), name=f"video-removal-{job.id}")
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)
            raise
        job = await self.get(job.id, tenant=job.owner)
        error = VideoRecord.of(job).error
        if error is not None:
            raise RequestError(error.message, code=error.code)
        if job.state != COMPLETED:
            raise NotReady("The server goes down; the next one goes on with this video.", code="draining")
        return job

    async def page(self, *, tenant: str, limit: int, after: str | None, order: Order) -> tuple[Job, ...]:
        """Jobs of this owner, one more than ``limit`` if there are more."""
        return await self._store.list(
            owner=tenant, kind=KIND, limit=limit + 1, after=after, order=order, states=VISIBLE
        )

    async def delete(self, job_id: str, *, tenant: str) -> None:
        """Removes a job and its files; one that runs is cancelled first.

        Raises:
            NotFound: There is none.
        """
        # One act: from here on its task can't store anything any more.
        job = await self._store.transition(job_id, VISIBLE, DELETED, owner=tenant)
        if job is None:
            raise _not_found(job_id)
        live = self._live.get(job_id)
        if live is not None and live.task is not None:
            if live.run is None:
                live.task.cancel()  # it waits for its model
            else:
                live.run.cancel()
            await asyncio.gather(live.task, return_exceptions=True)
        await self._purge(job)

    def progress(self, job_id: str) -> int | None:
        """Percent of a job that runs here; None for others."""
        live = self._live.get(job_id)
        return None if live is None else live.progress

    # Following one job.

    def _follow(self, job_id: str, record: VideoRecord, tenant: str, run: BackgroundRun | None) -> None:
        live = self._live[job_id] = _Live()
        live.run = run
        live.task = asyncio.create_task(self._run_job(job_id, record, tenant, live), name=f"video-{job_id}")

    async def _run_job(self, job_id: str, record: VideoRecord, tenant: str, live: _Live) -> None:
        try:
            while True:
                if live.run is None:
                    live.run = await self._submit_again(record, tenant)
                try:
                    await self._read(job_id, record, live)
                    return
                except WorkerDied:
                    stored = await self._store.get(job_id, owner=None)
                    if stored is None or VideoRecord.of(stored).num_runs >= _MAX_RUNS:
                        raise
                    record = VideoRecord.of(stored)
                    live.run, live.progress = None, 0
        except RequestCancelled:
            return  # by `delete`, which has marked the job
        except RequestError as error:
            if not (isinstance(error, NotReady) and error.code == "draining"):  # the next server takes it up
                await self._fail(job_id, live, JobError.of(error))
        except Exception:  # the border of the task: a defect must not leave a job running for ever
            _LOG.exception("video job %s: a defect ended it", job_id)
            await self._fail(job_id, live, _DEFECT)
        finally:
            del self._live[job_id]

    async def _submit_again(self, record: VideoRecord, tenant: str) -> BackgroundRun:
        reference = await self._assets.read(record.reference)
        request = msgspec.structs.replace(record.request, reference=reference)
        while True:
            await self._services.wait_ready(record.model, OPERATION, tenant=tenant)
            try:
                return self._services.background(
                    record.model, OPERATION, request, tenant=tenant, priority=record.priority
                )
            except QueueFull as full:
                await self._sleep(full.retry_after_s or 1.0)

    async def _read(self, job_id: str, record: VideoRecord, live: _Live) -> None:
        assert live.run is not None
        chunks: list[bytes] = []
        begun: VideoRecord | None = None
        async for events in live.run:
            if begun is None:
                begun = await self._begin(job_id, record)
            for event in events:
                if isinstance(event, Increment):
                    self._note(event.output, chunks, live)
                elif isinstance(event, Finished):
                    result = event.result
                    assert isinstance(result, VideoFile), "only clips become jobs"
                    await self._complete(job_id, begun, result, b"".join(chunks))

    async def _begin(self, job_id: str, record: VideoRecord) -> VideoRecord:
        begun = msgspec.structs.replace(record, num_runs=record.num_runs + 1)
        await self._store.transition(job_id, OPEN, IN_PROGRESS, payload=begun.payload())  # nothing if it was deleted
        return begun

    def _note(self, output: Any, chunks: list[bytes], live: _Live) -> None:
        if isinstance(output, VideoProgress):
            # 100 is for a file that can be downloaded.
            live.progress = min(99, max(1, 100 * output.num_steps_done // output.num_steps))
        elif isinstance(output, VideoChunk):
            chunks.append(output.data)

    async def _complete(self, job_id: str, record: VideoRecord, result: VideoFile, video: bytes) -> None:
        files = await self._assets.store(result, video)
        done = msgspec.structs.replace(record, progress=100, ended_s=self._services.clock(), files=files)
        stored = await self._store.transition(job_id, (IN_PROGRESS,), COMPLETED, payload=done.payload())
        if stored is None:  # deleted meanwhile
            await self._assets.delete(files.ids)

    async def _fail(self, job_id: str, live: _Live | None, error: JobError) -> None:
        stored = await self._store.get(job_id, owner=None)
        if stored is None:
            return
        record = msgspec.structs.replace(
            VideoRecord.of(stored),
            error=error,
            ended_s=self._services.clock(),
            progress=0 if live is None else live.progress,
        )
        await self._store.transition(job_id, OPEN, FAILED, payload=record.payload())

    # Restart, expiry and files.

    async def _take_up(self, job: Job) -> None:
        record = VideoRecord.of(job)
        if job.state == IN_PROGRESS and record.num_runs >= _MAX_RUNS:
            message = "The server was restarted twice while it made this video. Send the request again."
            await self._fail(job.id, None, JobError(code="interrupted", message=message))
            return
        if job.state == IN_PROGRESS:
            await self._store.transition(job.id, (IN_PROGRESS,), QUEUED)
        self._follow(job.id, record, job.owner, None)

    async def _sweep(self) -> None:
        while True:
            try:
                await self.remove_expired()
            except Exception:  # the border of the task: a full disk today must not end expiry for ever
                _LOG.exception("expired videos could not be removed")
            await self._sleep(_SWEEP_EVERY_S)

    async def remove_expired(self) -> None:
        """Removes jobs whose time is over, with their files."""
        for job in await self._all(COMPLETED, FAILED):
            if self._expired(job):
                await self._store.transition(job.id, (COMPLETED, FAILED), DELETED)
                await self._purge(job)

    def _expired(self, job: Job) -> bool:
        expires_s = VideoRecord.of(job).expires_s
        return expires_s is not None and self._services.clock() >= expires_s

    async def _all(self, *states: str) -> list[Job]:
        found: list[Job] = []
        after: str | None = None
        while True:
            page = await self._store.list(owner=None, kind=KIND, limit=_PAGE, after=after, order="asc", states=states)
            found.extend(page)
            if len(page) < _PAGE:
                return found
            after = page[-1].id

    async def _purge(self, job: Job) -> None:
        await self._assets.delete(VideoRecord.of(job).file_ids)
        await self._store.delete(job.id, owner=None)


def _not_found(job_id: str) -> NotFound:
    return NotFound(f"There is no video {job_id[:80]!r}. It may have been deleted or have expired.", param="video_id")
