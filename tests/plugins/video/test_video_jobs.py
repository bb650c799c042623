"""Jobs over a fake model: restarts, deletions, failures and expiry."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sixfold.core.errors import NotFound, NotReady, QueueFull, RequestCancelled, RequestError, StepFailed, WorkerDied
from sixfold.core.files import FileStore
from sixfold.core.jobs import Job, JobStore
from sixfold.core.messages import Event, Finished, Increment
from sixfold.plugins.video.assets import VideoAssets
from sixfold.plugins.video.jobs import VideoJobs
from sixfold.plugins.video.messages import VideoChunk, VideoFile, VideoInput, VideoProgress
from sixfold.plugins.video.record import VideoRecord, video_object

REQUEST = VideoInput(
    prompt="a", width=32, height=32, num_frames=9, fps=8, num_inference_steps=4, guidance_scale=1.0, seed=1
)
RECORD = VideoRecord(model="clips", request=REQUEST, seconds="1", keep_s=100.0)


class FakeRun:
    """A `BackgroundRun` that yields what the test puts in."""

    def __init__(self, input: VideoInput) -> None:
        self.input = input
        self.events: asyncio.Queue[Sequence[Event] | RequestError] = asyncio.Queue()
        self.cancelled = False

    def __aiter__(self) -> AsyncIterator[Sequence[Event]]:
        return self._events()

    async def _events(self) -> AsyncIterator[Sequence[Event]]:
        while True:
            events = await self.events.get()
            if isinstance(events, RequestError):
                raise events
            yield events
            if isinstance(events[-1], Finished):
                return

    async def result(self) -> Finished[Any]:
        raise NotImplementedError

    def cancel(self) -> None:
        self.cancelled = True
        self.events.put_nowait(RequestCancelled("cancelled"))

    def step(self, done: int) -> None:
        self.events.put_nowait((Increment(request_id="r", output=VideoProgress(num_steps_done=done, num_steps=4)),))

    def finish(self, data: bytes = b"video", *, num_bytes: int | None = None) -> None:
        file = VideoFile(
            num_bytes=len(data) if num_bytes is None else num_bytes,
            media_type="video/mp4",
            suffix=".mp4",
            thumbnail=b"thumbnail",
            spritesheet=b"sheet",
        )
        chunks: list[Any] = [
            Increment(request_id="r", output=VideoChunk(data=data[i : i + 2])) for i in range(0, len(data), 2)
        ]
        end: Any = Finished(request_id="r", result=file)
        self.events.put_nowait((*chunks, end))


class FakeServices:
    """`Services` with a clock that the test moves and a model that takes everything."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.store_id = "abcdefgh"
        self.now_s = 1000.0
        self.runs: list[FakeRun] = []
        self.refusals: list[RequestError] = []
        self.ready = asyncio.Event()
        self.ready.set()
        self.submitted = asyncio.Event()

    def clock(self) -> float:
        return self.now_s

    async def wait_ready(self, model_name: str, operation: str, *, tenant: str) -> Any:
        await self.ready.wait()

    def background(self, model_name: str, operation: str, input: Any, *, tenant: str, **_: Any) -> FakeRun:
        if self.refusals:
            raise self.refusals.pop(0)
        self.runs.append(FakeRun(input))
        self.submitted.set()
        return self.runs[-1]


@asynccontextmanager
async def opened(services: FakeServices, **options: Any) -> AsyncGenerator[VideoJobs]:
    folder = services.data_dir
    store = JobStore(folder / "jobs.sqlite3", clock=services.clock)
    files = FileStore(folder / "files", None, clock=services.clock)
    jobs = VideoJobs(services, store, VideoAssets(files), **options)
    await jobs.open()
    try:
        yield jobs
    finally:
        await jobs.close()


@pytest.fixture
async def services(tmp_path: Path) -> FakeServices:
    return FakeServices(tmp_path)


async def stored(services: FakeServices, file_id: str) -> bytes | None:
    return await VideoAssets(FileStore(services.data_dir / "files", None)).read(file_id)


def num_files(services: FakeServices) -> int:
    return len(list((services.data_dir / "files").iterdir()))


async def until(jobs: VideoJobs, job_id: str, state: str) -> dict[str, Any]:
    """The job once it is in this state."""
    async with asyncio.timeout(10):
        while True:
            job = await jobs.get(job_id, tenant="ward")
            if job.state == state:
                return dict(video_object(job, progress=jobs.progress(job_id)))


async def test_a_job_goes_from_queued_to_completed(services: FakeServices) -> None:
    async with opened(services) as jobs:
        job = await jobs.create(RECORD, tenant="ward")
        assert job.state == "queued"
        services.runs[0].step(1)
        assert (await until(jobs, job.id, "in_progress"))["status"] == "in_progress"
        services.now_s = 1010.0
        services.runs[0].finish(b"a video of odd length")
        done = await until(jobs, job.id, "completed")
        assert (done["progress"], done["completed_at"], done["expires_at"]) == (100, 1010, 1110)
        files = VideoRecord.of(await jobs.get(job.id, tenant="ward")).files
        assert files is not None
        assert await stored(services, files.video) == b"a video of odd length"
        assert await stored(services, files.thumbnail) == b"thumbnail"


async def test_progress_is_the_share_of_steps_and_never_a_hundred_before_the_file_is_there(
    services: FakeServices,
) -> None:
    async with opened(services) as jobs:
        job = await jobs.create(RECORD, tenant="ward")
        for done, percent in ((1, 25), (3, 75), (4, 99)):
            services.runs[0].step(done)
            async with asyncio.timeout(10):
                while jobs.progress(job.id) != percent:
                    await asyncio.sleep(0)


async def test_a_failure_is_stored_with_its_code_and_message(services: FakeServices) -> None:
    async with opened(services) as jobs:
        job = await jobs.create(RECORD, tenant="ward")
        services.runs[0].step(2)
        services.runs[0].events.put_nowait(StepFailed("It did not work."))
        failed = await until(jobs, job.id, "failed")
        assert failed["error"] == {"code": "model_step_failed", "message": "It did not work."}
        assert failed["completed_at"] is None
        assert num_files(services) == 0


async def test_a_file_that_arrived_in_part_fails_the_job(
    services: FakeServices, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(services) as jobs:
        job = await jobs.create(RECORD, tenant="ward")
        services.runs[0].finish(b"part", num_bytes=400)
        failed = await until(jobs, job.id, "failed")
        assert failed["error"]["code"] == "internal_error"
    assert "4 of 400 bytes" in caplog.text


@pytest.mark.parametrize("finish", [True, False], ids=["a clip", "a failure"])
async def test_a_job_whose_end_a_full_disk_refuses_once_fails_when_there_is_room_again(
    services: FakeServices, monkeypatch: pytest.MonkeyPatch, finish: bool
) -> None:
    refusals = [sqlite3.OperationalError("database or disk is full")] * 2
    transition = JobStore.transition

    async def refuses(
        store: JobStore, job_id: str, from_states: Collection[str], to_state: str, **options: Any
    ) -> Job | None:
        if to_state in ("completed", "failed") and refusals:
            raise refusals.pop()
        return await transition(store, job_id, from_states, to_state, **options)

    async def sleep(_seconds: float) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(JobStore, "transition", refuses)
    async with opened(services, sleep=sleep) as jobs:
        job = await jobs.create(RECORD, tenant="ward")
        services.runs[0].step(2)
        if finish:
            services.runs[0].finish()
        else:
            services.runs[0].events.put_nowait(StepFailed("It did not work."))
        failed = await until(jobs, job.id, "failed")
        assert failed["error"]["code"] == ("internal_error" if finish else "model_step_failed")
        assert num_files(services) == 0
    assert refusals == []


async def test_nothing_is_kept_of_a_request_that_the_model_does_not_take(services: FakeServices) -> None:
    services.refusals.append(QueueFull("full", retry_after_s=2.0))
    async with opened(services) as jobs:
        with pytest.raises(QueueFull):
            await jobs.create(RECORD, tenant="ward")
        assert await jobs.page(tenant="ward", limit=10, after=None, order="desc") == ()


async def test_deleting_a_running_job_cancels_it_and_frees_everything(services: FakeServices) -> None:
    record = msgspec.structs.replace(RECORD, request=msgspec.structs.replace(REQUEST, reference=b"image"))
    async with opened(services) as jobs:
        job = await jobs.create(record, tenant="ward")
        services.runs[0].step(1)
        await until(jobs, job.id, "in_progress")
        assert num_files(services) == 1
        with pytest.raises(NotFound):
            await jobs.delete(job.id, tenant="lab")
        await jobs.delete(job.id, tenant="ward")
        assert services.runs[0].cancelled
        assert jobs.progress(job.id) is None
        assert num_files(services) == 0
        with pytest.raises(NotFound):
            await jobs.get(job.id, tenant="ward")


async def test_a_job_that_completes_while_it_is_deleted_leaves_no_file(services: FakeServices) -> None:
    async with opened(services) as jobs:
        job = await jobs.create(RECORD, tenant="ward")
        services.runs[0].finish()
        await jobs.delete(job.id, tenant="ward")
        assert num_files(services) == 0


async def test_completed_jobs_and_their_files_survive_a_restart(services: FakeServices) -> None:
    async with opened(services) as jobs:
        job = await jobs.create(RECORD, tenant="ward")
        services.runs[0].finish(b"kept")
        before = await until(jobs, job.id, "completed")
    async with opened(services) as jobs:
        assert await until(jobs, job.id, "completed") == before
        files = VideoRecord.of(await jobs.get(job.id, tenant="ward")).files
        assert files is not None and await stored(services, files.video) == b"kept"
    assert len(services.runs) == 1


async def test_jobs_that_had_not_ended_run_again_when_their_model_is_ready(services: FakeServices) -> None:
    record = msgspec.structs.replace(RECORD, request=msgspec.structs.replace(REQUEST, reference=b"image"))
    async with opened(services) as jobs:
        running = await jobs.create(record, tenant="ward")
        queued = await jobs.create(RECORD, tenant="ward")
        services.runs[0].step(2)
        await until(jobs, running.id, "in_progress")
    services.ready.clear()
    async with opened(services) as jobs:
        assert [(await until(jobs, job.id, "queued"))["progress"] for job in (running, queued)] == [0, 0]
        assert len(services.runs) == 2
        services.ready.set()
        async with asyncio.timeout(10):
            while len(services.runs) < 4:
                await asyncio.sleep(0)
        again = {run.input.reference: run for run in services.runs[2:]}
        assert again[b"image"].input == services.runs[0].input
        for run in again.values():
            run.finish()
        for job in (running, queued):
            await until(jobs, job.id, "completed")


async def test_a_job_that_ran_twice_is_not_run_a_third_time(services: FakeServices) -> None:
    job_id = ""
    for start in range(2):
        async with opened(services) as jobs:
            if not job_id:
                job_id = (await jobs.create(RECORD, tenant="ward")).id
            async with asyncio.timeout(10):
                while len(services.runs) <= start:
                    await asyncio.sleep(0)
            services.runs[start].step(1)
            await until(jobs, job_id, "in_progress")
    async with opened(services) as jobs:
        failed = await until(jobs, job_id, "failed")
    assert failed["error"]["code"] == "interrupted"
    assert len(services.runs) == 2


async def test_a_job_whose_worker_dies_is_run_once_more(services: FakeServices) -> None:
    async with opened(services) as jobs:
        job = await jobs.create(RECORD, tenant="ward")
        services.submitted.clear()
        services.runs[0].step(1)
        services.runs[0].events.put_nowait(WorkerDied("gone"))
        await asyncio.wait_for(services.submitted.wait(), 10)
        services.runs[1].step(1)
        services.runs[1].events.put_nowait(WorkerDied("gone again"))
        failed = await until(jobs, job.id, "failed")
    assert failed["error"] == {"code": "worker_died", "message": "gone again"}
    assert len(services.runs) == 2


async def test_a_job_whose_only_worker_dies_waits_until_another_one_is_up(services: FakeServices) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if seconds == 60.0:  # between two looks for expired jobs
            await asyncio.Event().wait()

    async with opened(services, sleep=sleep) as jobs:
        job = await jobs.create(RECORD, tenant="ward")
        services.submitted.clear()
        services.refusals += [WorkerDied("being restarted", retry_after_s=12.5), WorkerDied("being restarted")]
        services.runs[0].events.put_nowait(WorkerDied("gone"))
        await asyncio.wait_for(services.submitted.wait(), 10)
        services.runs[1].finish()
        await until(jobs, job.id, "completed")
    assert [seconds for seconds in waits if seconds != 60.0] == [12.5, 1.0]


async def test_a_drained_job_is_left_for_the_next_server(services: FakeServices) -> None:
    async with opened(services) as jobs:
        job = await jobs.create(RECORD, tenant="ward")
        services.runs[0].events.put_nowait(NotReady("going down", code="draining"))
        async with asyncio.timeout(10):
            while jobs.progress(job.id) is not None:
                await asyncio.sleep(0)
        assert (await until(jobs, job.id, "queued"))["error"] is None


async def test_a_full_queue_after_a_restart_is_waited_for(services: FakeServices) -> None:
    async with opened(services) as jobs:
        job = await jobs.create(RECORD, tenant="ward")
    services.refusals.append(QueueFull("full", retry_after_s=2.5))
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if seconds == 60.0:  # between two looks for expired jobs
            await asyncio.Event().wait()

    async with opened(services, sleep=sleep) as jobs:
        async with asyncio.timeout(10):
            while len(services.runs) < 2:
                await asyncio.sleep(0)
        services.runs[1].finish()
        await until(jobs, job.id, "completed")
    assert 2.5 in waits


async def test_a_replica_that_is_full_when_it_is_asked_is_asked_again_and_the_job_does_not_fail(
    services: FakeServices,
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if seconds == 60.0:
            await asyncio.Event().wait()

    async with opened(services, sleep=sleep) as jobs:
        job = await jobs.create(RECORD, tenant="ward")
        services.submitted.clear()
        services.runs[0].events.put_nowait(QueueFull("would be late", code="would_be_late", retry_after_s=2.5))
        await asyncio.wait_for(services.submitted.wait(), 10)
        services.runs[1].finish()
        await until(jobs, job.id, "completed")
    assert 2.5 in waits


async def test_expired_jobs_are_removed_with_their_files(services: FakeServices) -> None:
    async with opened(services) as jobs:
        job = await jobs.create(RECORD, tenant="ward")
        services.runs[0].finish()
        await until(jobs, job.id, "completed")
        services.now_s += 99
        await jobs.remove_expired()
        assert num_files(services) == 3
        services.now_s += 1
        with pytest.raises(NotFound):
            await jobs.get(job.id, tenant="ward")
        await jobs.remove_expired()
        assert num_files(services) == 0
        assert await jobs.page(tenant="ward", limit=10, after=None, order="desc") == ()


async def test_whoever_waits_for_the_end_gets_the_finished_job_or_why_there_is_none(services: FakeServices) -> None:
    async with opened(services) as jobs:
        job = await jobs.create(RECORD, tenant="ward")
        waiting = asyncio.create_task(jobs.ended(job))
        services.runs[0].step(1)
        services.runs[0].finish(b"a video")
        assert (await waiting).state == "completed"
        failing = await jobs.create(RECORD, tenant="ward")
        waiting = asyncio.create_task(jobs.ended(failing))
        services.runs[1].events.put_nowait(StepFailed("It did not work."))
        with pytest.raises(RequestError, match="It did not work"):
            await waiting


async def test_a_job_goes_when_nobody_waits_for_its_end_any_more(services: FakeServices) -> None:
    async with opened(services) as jobs:
        job = await jobs.create(RECORD, tenant="ward")
        waiting = asyncio.create_task(jobs.ended(job))
        services.runs[0].step(1)
        await until(jobs, job.id, "in_progress")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with opened(services) as jobs:
        assert await jobs.page(tenant="ward", limit=10, after=None, order="desc") == ()
    assert num_files(services) == 0
    assert len(services.runs) == 1, "the next server does not take it up"
