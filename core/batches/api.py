"""The HTTP face of files and batches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.responses import Response

from sixfold.core.batches.idle_gate import IdleGate
from sixfold.core.batches.ledger import Batches, Files
from sixfold.core.batches.objects import BatchObject, BatchPage, DeletedFile, FileObject, FilePage
from sixfold.core.batches.outcomes import OutcomeStore
from sixfold.core.batches.records import ENDED, VALIDATING, BatchRecord, FileRecord, batch_object, file_object
from sixfold.core.batches.row import RowRunner
from sixfold.core.batches.runner import BatchRunner
from sixfold.core.batches.schema import BatchBody, BatchesQuery, FileForm, FilesQuery, window_s
from sixfold.core.errors import InvalidRequest, RateLimited
from sixfold.core.files import FileStore
from sixfold.core.jobs import Job, JobStore
from sixfold.core.serving.api import Call, ModalityAPI, Route, Services
from sixfold.core.serving.inner_calls import InnerCalls
from sixfold.core.serving.settings import ServerSettings

_MIN_FILE_BYTES = 4096
"""What the shortest file takes of a disk, and its record of memory."""
_FILE = "/v1/files/{file_id}"
_BATCH = "/v1/batches/{batch_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What is opened together."""

    jobs: JobStore
    files: Files
    batches: Batches
    outcomes: OutcomeStore
    runner: BatchRunner


class BatchAPI(ModalityAPI):
    """Answers ``/v1/files`` and ``/v1/batches``; part of every server.

    Args:
        inner: Answers the lines.
        settings: Of the server.
    """

    modality = "batches"

    def __init__(self, inner: InnerCalls, settings: ServerSettings) -> None:
        super().__init__()
        self._inner = inner
        self._settings = settings
        self._parts: _Parts | None = None
        self._opening = asyncio.Lock()
        # Between counting what a key has and storing one more nothing may be stored.
        self._creating = asyncio.Lock()

    def routes(self) -> Sequence[Route]:
        """OpenAI's routes."""
        return (
            Route(path="/v1/files", endpoint=self.upload, form=FileForm, answer=FileObject),
            Route(path="/v1/files", endpoint=self.list_files, method="GET", query_params=FilesQuery, answer=FilePage),
            Route(path=_FILE, endpoint=self.get_file, method="GET", answer=FileObject),
            Route(path=_FILE, endpoint=self.delete_file, method="DELETE", answer=DeletedFile),
            Route(
                path=f"{_FILE}/content",
                endpoint=self.content,
                method="GET",
                media_types=("application/octet-stream", "application/jsonl"),
            ),
            Route(path="/v1/batches", endpoint=self.create, body=BatchBody, answer=BatchObject),
            Route(
                path="/v1/batches",
                endpoint=self.list_batches,
                method="GET",
                query_params=BatchesQuery,
                answer=BatchPage,
            ),
            Route(path=_BATCH, endpoint=self.get_batch, method="GET", answer=BatchObject),
            Route(path=f"{_BATCH}/cancel", endpoint=self.cancel, answer=BatchObject),
        )

    async def startup(self, services: Services) -> None:
        """Takes up what a former server left; a temporary folder is made with the first file."""
        self._services = services
        if self._settings.data_dir is not None:
            await self._open()

    async def shutdown(self) -> None:
        """Stops the work; the next server takes it up."""
        if self._parts is not None:
            await self._parts.runner.close()
            await self._parts.outcomes.close()
            await self._parts.jobs.close()

    async def upload(self, call: Call) -> Response:
        """Takes a file.

        Raises:
            RequestError: The form is wrong or too large, there is no room, or the key has too many files.
        """
        files = (await self._open()).files
        await self._check_num_files(files, call.tenant)  # before all of it is sent
        form = await call.form(FileForm, files.store)
        keep_s = self._settings.batches.keep_files_s if form.expires_after is None else form.expires_after.seconds
        record = FileRecord(
            filename=form.file.filename or "file",
            num_bytes=form.file.num_bytes,
            stored_id=form.file.file_id,
            expires_s=self._services.clock() + keep_s,
        )
        if not record.num_bytes:
            await asyncio.to_thread(files.store.delete, record.stored_id)
            raise InvalidRequest("The file is empty. Send one with content.", param="file")
        # Shielded: a client that leaves now finds the file or nothing, never a record without bytes.
        return call.respond(file_object(await asyncio.shield(self._add(files, record, call.tenant, form.purpose))))

    async def _add(self, files: Files, record: FileRecord, tenant: str, purpose: str) -> Job:
        try:
            async with self._creating:
                await self._check_num_files(files, tenant)
                return await files.add(record, tenant=tenant, purpose=purpose)
        except BaseException:
            await asyncio.to_thread(files.store.delete, record.stored_id)
            raise

    async def _check_num_files(self, files: Files, tenant: str) -> None:
        limit = self._settings.batches.max_files
        if await files.num(tenant=tenant, limit=limit) >= limit:
            raise RateLimited(
                f"The key has {limit} files. Delete some, or wait until some expire.",
                code="too_many_files",
                retry_after_s=60.0,
            )

    async def list_files(self, call: Call) -> Response:
        """Lists the key's files."""
        query = call.query(FilesQuery)
        files = (await self._open()).files
        found = await files.page(
            tenant=call.tenant, limit=query.limit, after=query.after, order=query.order, purpose=query.purpose
        )
        return call.respond(_page([file_object(job) for job in found], query.limit))

    async def get_file(self, call: Call) -> Response:
        """Tells about a file.

        Raises:
            NotFound: The key has none of this id.
        """
        return call.respond(file_object(await self._file(call)))

    async def content(self, call: Call) -> Response:
        """Sends a file's bytes; takes range requests.

        Raises:
            NotFound: The key has none of this id.
        """
        job = await self._file(call)
        kind = "application/octet-stream" if job.state == "user_data" else "application/jsonl"
        path = (await self._open()).files.path(job)
        return call.respond_file(path, media_type=kind, filename=FileRecord.of(job).filename)

    async def delete_file(self, call: Call) -> Response:
        """Removes a file.

        Raises:
            NotFound: The key has none of this id.
            InvalidRequest: A batch still reads it.
        """
        parts = await self._open()
        job = await self._file(call)
        for batch in await parts.batches.open_ones():
            if BatchRecord.of(batch).input_file_id == job.id:
                raise InvalidRequest(
                    f"The batch {batch.id} still reads this file. Cancel it first, or wait for its end.",
                    param="file_id",
                    code="file_in_use",
                )
        await parts.files.delete(job)
        return call.respond({"id": job.id, "object": "file", "deleted": True})

    async def create(self, call: Call) -> Response:
        """Begins a batch; answers before its file is read.

        Raises:
            InvalidRequest: The endpoint takes no batches, or the file is not for them.
            NotFound: The key has no such file.
            RateLimited: The key has too many batches.
        """
        body = await call.json(BatchBody)
        if body.endpoint not in self._inner.paths:
            raise InvalidRequest(
                f"{body.endpoint!r} takes no batches here. Those that do: {', '.join(self._inner.paths)}.",
                param="endpoint",
            )
        parts = await self._open()
        job = await parts.files.get(body.input_file_id, tenant=call.tenant, param="input_file_id")
        if job.state != "batch":
            raise InvalidRequest(
                f"The file's purpose is {job.state!r}. Upload the lines with the purpose 'batch'.",
                param="input_file_id",
            )
        output = body.output_expires_after
        record = BatchRecord(
            endpoint=body.endpoint,
            input_file_id=job.id,
            completion_window=body.completion_window,
            expires_s=self._services.clock() + window_s(body.completion_window),
            keep_files_s=self._settings.batches.keep_files_s if output is None else output.seconds,
            metadata=body.metadata,
        )
        # Shielded: a batch that is stored is begun, also where its client has left.
        batch = await asyncio.shield(self._begin(parts, record, call.tenant))
        return call.respond(batch_object(batch, (0, 0)))

    async def _begin(self, parts: _Parts, record: BatchRecord, tenant: str) -> Job:
        async with self._creating:
            await self._check_num_batches(parts.batches, tenant)
            batch = await parts.batches.create(record, tenant=tenant, state=VALIDATING)
        parts.runner.start(batch)
        return batch

    async def _check_num_batches(self, batches: Batches, tenant: str) -> None:
        bounds = self._settings.batches
        if await batches.num_open(tenant=tenant, limit=bounds.max_open_batches) >= bounds.max_open_batches:
            message = f"The key has {bounds.max_open_batches} batches that have not ended. Wait for one, or cancel it."
        elif await batches.num(tenant=tenant, limit=bounds.max_batches) >= bounds.max_batches:
            message = f"The key has {bounds.max_batches} batches that are kept. Wait until the oldest are forgotten."
        else:
            return
        raise RateLimited(message, code="too_many_batches", retry_after_s=60.0)

    async def list_batches(self, call: Call) -> Response:
        """Lists the key's batches, newest first."""
        query = call.query(BatchesQuery)
        batches = (await self._open()).batches
        found = await batches.page(tenant=call.tenant, limit=query.limit, after=query.after)
        return call.respond(_page([await self._object(job) for job in found], query.limit))

    async def get_batch(self, call: Call) -> Response:
        """Tells about a batch.

        Raises:
            NotFound: The key has none of this id.
        """
        batches = (await self._open()).batches
        job = await batches.get(call.path_params["batch_id"], tenant=call.tenant)
        return call.respond(await self._object(job))

    async def cancel(self, call: Call) -> Response:
        """Begins to end a batch; what was answered until then is in its output file.

        Raises:
            NotFound: The key has none of this id.
        """
        parts = await self._open()
        return call.respond(
            await self._object(await parts.runner.cancel(call.path_params["batch_id"], tenant=call.tenant))
        )

    async def _file(self, call: Call) -> Job:
        return await (await self._open()).files.get(call.path_params["file_id"], tenant=call.tenant)

    async def _object(self, job: Job) -> BatchObject:
        record = BatchRecord.of(job)
        if job.state in ENDED:
            return batch_object(job, (record.num_completed, record.num_failed))
        return batch_object(job, await (await self._open()).outcomes.counts(job.id))

    async def _open(self) -> _Parts:
        async with self._opening:
            if self._parts is None:
                self._parts = await self._new_parts()
            return self._parts

    async def _new_parts(self) -> _Parts:
        folder, clock, settings = self._services.data_dir, self._services.clock, self._settings
        jobs = JobStore(folder / "batches.sqlite3", clock=clock, store_id=self._services.store_id)
        outcomes = OutcomeStore(folder / "outcomes.sqlite3")
        store = await asyncio.to_thread(
            FileStore,
            folder / "files",
            None,
            max_bytes=settings.batches.max_storage_bytes,
            min_file_bytes=_MIN_FILE_BYTES,
            reserved=lambda: 2 * outcomes.num_bytes,  # they are there twice while the results are written
            clock=clock,
        )
        await jobs.open()
        await outcomes.open()
        files, batches = Files(jobs, store, clock), Batches(jobs, clock)
        gate = IdleGate(settings.batches, self._inner.num_urgent, lambda: self._inner.draining)
        rows = RowRunner(self._inner, gate, outcomes, files, settings, asyncio.sleep)
        runner = BatchRunner(batches, files, outcomes, rows, settings, clock=clock)
        await runner.open()
        return _Parts(jobs=jobs, files=files, batches=batches, outcomes=outcomes, runner=runner)


def _page(found: Sequence[FileObject] | Sequence[BatchObject], limit: int) -> dict[str, object]:
    data = found[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > limit,
    }
