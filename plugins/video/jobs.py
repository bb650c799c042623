"""Video jobs beside HTTP calls: stored at every change of state, run again after a restart, removed when their time is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sixfold.core.errors import NotFound, NotReady, RequestError
from sixfold.core.jobs import Job, JobStore, Order
from sixfold.core.serving.api import Services
from sixfold.plugins.video.assets import VideoAssets
from sixfold.plugins.video.job_follower import MAX_RUNS, OPERATION, JobFollower
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

_LOG = logging.getLogger(__name__)

_SWEEP_EVERY_S = 60.0
_PAGE = 100


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
        self._follower = JobFollower(services, store, assets, sleep)
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
        await self._follower.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
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
        self._follower.follow(job_id, record, tenant, run)
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
        try:
            await self._follower.join(job.id)
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
        await self._follower.stop(job_id)
        await self._purge(job)

    def progress(self, job_id: str) -> int | None:
        """Percent of a job that runs here; None for others."""
        return self._follower.progress(job_id)

    # Restart, expiry and files.

    async def _take_up(self, job: Job) -> None:
        record = VideoRecord.of(job)
        if job.state == IN_PROGRESS and record.num_runs >= MAX_RUNS:
            message = "The server was restarted twice while it made this video. Send the request again."
            await self._follower.fail(job.id, JobError(code="interrupted", message=message))
            return
        if job.state == IN_PROGRESS:
            await self._store.transition(job.id, (IN_PROGRESS,), QUEUED)
        self._follower.follow(job.id, record, job.owner, None)

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
