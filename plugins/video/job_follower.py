"""Follows video jobs, each in a task of its own: what its clips become is stored, and a worker that died is no end yet."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from sixfold.core.errors import NotReady, QueueFull, RequestCancelled, RequestError, WorkerDied
from sixfold.core.jobs import JobStore
from sixfold.core.messages import Finished, Increment
from sixfold.core.serving.api import BackgroundRun, Services
from sixfold.plugins.video.assets import VideoAssets
from sixfold.plugins.video.messages import VideoChunk, VideoFile, VideoProgress
from sixfold.plugins.video.record import COMPLETED, FAILED, IN_PROGRESS, OPEN, JobError, VideoRecord

OPERATION = "video"
MAX_RUNS = 2
"""Of one job, on workers that died or servers that went down meanwhile."""

_FULL_PAUSE_S = 5.0
"""Between two attempts to store an end that a full disk has refused."""

_LOG = logging.getLogger(__name__)

_DEFECT = JobError(code="internal_error", message="The server made a mistake; its log says which.")


class _Live:
    """A job that this process runs. Owner: its task; `JobFollower` reads it and cancels ``run``."""

    def __init__(self, run: BackgroundRun | None) -> None:
        self.run = run
        self.progress = 0
        self.task: asyncio.Task[None] | None = None


class JobFollower:
    """The jobs that run on one server. Made and used in the serving loop.

    Args:
        services: Of the modality.
        store: Of the jobs.
        assets: Their files.
        sleep: ``asyncio.sleep``, or a fake.
    """

    def __init__(
        self, services: Services, store: JobStore, assets: VideoAssets, sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._services = services
        self._store = store
        self._assets = assets
        self._sleep = sleep
        self._live: dict[str, _Live] = {}

    def follow(self, job_id: str, record: VideoRecord, tenant: str, run: BackgroundRun | None) -> None:
        """Follows a job to its end; where ``run`` is None it is submitted as soon as its model takes it."""
        live = self._live[job_id] = _Live(run)
        live.task = asyncio.create_task(self._run_job(job_id, record, tenant, live), name=f"video-{job_id}")

    async def join(self, job_id: str) -> None:
        """Waits until a job is not followed any more; who stops waiting does not stop it."""
        live = self._live.get(job_id)
        if live is not None and live.task is not None:
            await asyncio.shield(live.task)

    async def stop(self, job_id: str) -> None:
        """Cancels a job if it runs here, and waits until it is not followed any more. Its state is the caller's."""
        live = self._live.get(job_id)
        if live is not None and live.task is not None:
            if live.run is None:
                live.task.cancel()  # it waits for its model
            else:
                live.run.cancel()
            await asyncio.gather(live.task, return_exceptions=True)

    async def close(self) -> None:
        """Stops following; the jobs stay as they are stored."""
        tasks = [live.task for live in self._live.values() if live.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def progress(self, job_id: str) -> int | None:
        """Percent of a job that runs here; None for others."""
        live = self._live.get(job_id)
        return None if live is None else live.progress

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
                    if stored is None or VideoRecord.of(stored).num_runs >= MAX_RUNS:
                        raise
                    record = VideoRecord.of(stored)
                    live.run, live.progress = None, 0
                except QueueFull as full:  # which a replica in another process tells as the first event
                    live.run = None
                    await self._sleep(full.retry_after_s or 1.0)
        except RequestCancelled:
            return  # by `delete`, which has marked the job
        except RequestError as error:
            if not (isinstance(error, NotReady) and error.code == "draining"):  # the next server takes it up
                await self._insist_failed(job_id, JobError.of(error))
        except Exception:  # the border of the task: a defect must not leave a job running for ever
            _LOG.exception("video job %s: a defect ended it", job_id)
            await self._insist_failed(job_id, _DEFECT)
        finally:
            del self._live[job_id]

    async def _insist_failed(self, job_id: str, error: JobError) -> None:
        """As `fail`, until no full disk or busy file stops it: else the job would be in progress with nobody at it."""
        while True:
            try:
                await self.fail(job_id, error)
                return
            except (NotReady, OSError, sqlite3.Error) as refusal:
                _LOG.warning("video job %s: its failure can't be stored, tried again: %s", job_id, refusal)
            except Exception:
                _LOG.exception("video job %s: it is left as it is for the next start", job_id)
                return
            await self._sleep(_FULL_PAUSE_S)

    async def _submit_again(self, record: VideoRecord, tenant: str) -> BackgroundRun:
        reference = await self._assets.read(record.reference)
        request = msgspec.structs.replace(record.request, reference=reference)
        while True:
            await self._services.wait_ready(record.model, OPERATION, tenant=tenant)
            try:
                return self._services.background(
                    record.model, OPERATION, request, tenant=tenant, priority=record.priority
                )
            except (QueueFull, WorkerDied) as refusal:  # the latter while no process of the model is up
                await self._sleep(refusal.retry_after_s or 1.0)

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
        try:
            stored = await self._store.transition(job_id, (IN_PROGRESS,), COMPLETED, payload=done.payload())
        except sqlite3.Error:  # no job knows of the files, and a full disk needs the room
            await self._assets.delete(files.ids)
            raise
        if stored is None:  # deleted meanwhile
            await self._assets.delete(files.ids)

    async def fail(self, job_id: str, error: JobError) -> None:
        """Stores that a job ended with an error; nothing if it has ended or was deleted."""
        stored = await self._store.get(job_id, owner=None)
        if stored is None:
            return
        record = msgspec.structs.replace(
            VideoRecord.of(stored),
            error=error,
            ended_s=self._services.clock(),
            progress=self.progress(job_id) or 0,
        )
        await self._store.transition(job_id, OPEN, FAILED, payload=record.payload())
