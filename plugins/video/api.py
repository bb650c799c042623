"""The HTTP face of video: OpenAI's ``/v1/videos``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec
from starlette.responses import Response

from sixfold.core.errors import InvalidRequest, NotFound
from sixfold.core.files import FileStore
from sixfold.core.jobs import JobStore
from sixfold.core.serving.api import Call, ModalityAPI, Panel, Route, ServedModel, Services, Upload
from sixfold.plugins.video.answers import DeletedVideo, VideoObject, VideoPage
from sixfold.plugins.video.assets import VideoAssets
from sixfold.plugins.video.capabilities import Capabilities
from sixfold.plugins.video.job_follower import OPERATION
from sixfold.plugins.video.jobs import VideoJobs
from sixfold.plugins.video.messages import ReferenceCheck, VideoInput
from sixfold.plugins.video.planning import check_prompt, plan, seconds_text
from sixfold.plugins.video.record import COMPLETED, FAILED, VideoRecord, video_object
from sixfold.plugins.video.schema import ContentQuery, CreateBody, ListQuery, RemixBody
from sixfold.plugins.video.stills import SPRITESHEET_TYPE, THUMBNAIL_TYPE

_MAX_REFERENCE_BYTES = 32 * 1024 * 1024

_FILE_TYPES = ("video/mp4", "video/webm", THUMBNAIL_TYPE, SPRITESHEET_TYPE)


class VideoAPI(ModalityAPI):
    """Answers ``/v1/videos`` and below."""

    modality = "video"

    def routes(self) -> Sequence[Route]:
        """OpenAI's routes; those that no open pipeline can honour say so."""
        one = "/v1/videos/{video_id}"
        refused = [
            Route(path="/v1/videos/edits", endpoint=self.refuse, media_types=()),
            Route(path="/v1/videos/extensions", endpoint=self.refuse, media_types=()),
            Route(path="/v1/videos/characters", endpoint=self.refuse, media_types=()),
            Route(path="/v1/videos/characters/{character_id}", endpoint=self.refuse, method="GET", media_types=()),
        ]
        return (
            *refused,
            Route(
                path="/v1/videos",
                endpoint=self.create,
                body=CreateBody,
                form=CreateBody,
                answer=VideoObject,
                in_batches=True,
            ),
            Route(path="/v1/videos", endpoint=self.list, method="GET", query_params=ListQuery, answer=VideoPage),
            Route(path=one, endpoint=self.retrieve, method="GET", answer=VideoObject),
            Route(path=one, endpoint=self.delete, method="DELETE", answer=DeletedVideo),
            Route(
                path=f"{one}/content",
                endpoint=self.content,
                method="GET",
                query_params=ContentQuery,
                media_types=_FILE_TYPES,
            ),
            Route(path=f"{one}/remix", endpoint=self.remix, body=RemixBody, form=RemixBody, answer=VideoObject),
        )

    def panels(self) -> Sequence[Panel]:
        """The tab Film."""
        script = Path(__file__).parent / "playground" / "film.js"
        return (Panel(title="Film", operation="video", script=script, order=60),)

    async def startup(self, services: Services) -> None:
        """Opens the jobs, and takes up what a former server left."""
        folder = services.data_dir
        self._files = await asyncio.to_thread(FileStore, folder / "files", None, clock=services.clock)
        self._assets = VideoAssets(self._files)
        store = JobStore(folder / "jobs.sqlite3", clock=services.clock, store_id=services.store_id)
        self._jobs = VideoJobs(services, store, self._assets)
        await self._jobs.open()

    async def shutdown(self) -> None:
        """Stops following the jobs that run; they are taken up by the next server."""
        await self._jobs.close()

    async def create(self, call: Call) -> Response:
        """Makes a job; answers at once, or in a batch when it has ended.

        Raises:
            RequestError: The body is wrong, the image can't be used, or the model's queue is full; in a batch also why the
                job failed.
        """
        body = await (call.form(CreateBody) if call.is_form else call.json(CreateBody))
        model = await self._model(call, body.model)
        can = Capabilities.of(model.info.details)
        request = plan(body, can, reference=await _reference_bytes(call, body))
        await _check_reference(call, model, request)
        record = VideoRecord(
            model=model.name,
            request=request,
            seconds=seconds_text(request, body.seconds),
            keep_s=can.keep_s,
            priority=call.priority,
        )
        job = await self._jobs.create(record, tenant=call.tenant)
        return call.respond(video_object(await self._jobs.ended(job) if call.in_batch else job))

    async def remix(self, call: Call) -> Response:
        """Makes a job with another's settings, seed and reference image, and a new prompt.

        Raises:
            RequestError: As `create`; the source is unknown or not completed.
        """
        body = await (call.form(RemixBody) if call.is_form else call.json(RemixBody))
        source = await self._jobs.get(call.path_params["video_id"], tenant=call.tenant)
        if source.state != COMPLETED:
            raise InvalidRequest(
                f"Video {source.id} is {source.state}; only a completed one can be remixed.", param="video_id"
            )
        old = VideoRecord.of(source)
        model = await call.model(old.model, OPERATION)
        reference = await self._assets.read(old.reference)
        prompt = check_prompt(body.prompt, "prompt", Capabilities.of(model.info.details))
        record = VideoRecord(
            model=old.model,
            request=msgspec.structs.replace(old.request, prompt=prompt, reference=reference),
            seconds=old.seconds,
            keep_s=old.keep_s,
            remixed_from=source.id,
            priority=call.priority,
        )
        return call.respond(video_object(await self._jobs.create(record, tenant=call.tenant)))

    async def retrieve(self, call: Call) -> Response:
        """The job as it is now."""
        job = await self._jobs.get(call.path_params["video_id"], tenant=call.tenant)
        return call.respond(video_object(job, progress=self._jobs.progress(job.id)))

    async def list(self, call: Call) -> Response:
        """A page of the key's jobs."""
        query = call.query(ListQuery)
        found = await self._jobs.page(tenant=call.tenant, limit=query.limit, after=query.after, order=query.order)
        page = found[: query.limit]
        return call.respond(
            {
                "object": "list",
                "data": [video_object(job, progress=self._jobs.progress(job.id)) for job in page],
                "first_id": page[0].id if page else None,
                "last_id": page[-1].id if page else None,
                "has_more": len(found) > len(page),
            }
        )

    async def content(self, call: Call) -> Response:
        """A file of a completed job, with range requests.

        Raises:
            InvalidRequest: The job is not completed.
            NotFound: There is none, or its file is gone.
        """
        variant = call.query(ContentQuery).variant
        job = await self._jobs.get(call.path_params["video_id"], tenant=call.tenant)
        record = VideoRecord.of(job)
        if record.files is None:
            why = (
                "failed; retrieve it for the reason"
                if job.state == FAILED
                else f"{job.state}; poll until it is completed"
            )
            raise InvalidRequest(f"Video {job.id} is {why}.", param="video_id", code="video_not_ready")
        file_id, media_type = {
            "video": (record.files.video, record.files.media_type),
            "thumbnail": (record.files.thumbnail, THUMBNAIL_TYPE),
            "spritesheet": (record.files.spritesheet, SPRITESHEET_TYPE),
        }[variant]
        path = await asyncio.to_thread(self._files.path, file_id)
        if path is None:
            raise NotFound(f"The {variant} of video {job.id} is not there any more.", param="video_id")
        return call.respond_file(path, media_type=media_type, filename=f"{job.id}{path.suffix}")

    async def delete(self, call: Call) -> Response:
        """Removes a job and its files; a running one is cancelled within one step."""
        video_id = call.path_params["video_id"]
        await self._jobs.delete(video_id, tenant=call.tenant)
        return call.respond({"id": video_id, "object": "video.deleted", "deleted": True})

    async def refuse(self, call: Call) -> Response:
        """Refused with 400: edits, extensions and characters need models that edit a given video.

        Raises:
            InvalidRequest: Always.
        """
        raise InvalidRequest(
            "This server has no model that edits or extends a given video, or keeps characters. Use /v1/videos, or "
            "/v1/videos/{id}/remix for the same settings and seed with another prompt.",
            code="unsupported_endpoint",
        )

    async def _model(self, call: Call, name: str | None) -> ServedModel:
        if name is not None:
            return await call.model(name, OPERATION)
        models = call.models(OPERATION)
        if len(models) != 1:
            names = ", ".join(model.name for model in models) or "none is ready"
            raise InvalidRequest(f"Say which model to use in the field model: {names}.", param="model")
        return await call.model(models[0].name, OPERATION)


async def _reference_bytes(call: Call, body: CreateBody) -> bytes | None:
    reference = body.input_reference
    if reference is None or isinstance(reference, Upload):
        return None if reference is None else reference.data
    if reference.image_url is None or reference.file_id is not None:
        raise InvalidRequest(
            "input_reference takes an uploaded image or image_url; this server has no Files API for file_id.",
            param="input_reference",
        )
    try:
        fetched = await call.fetch(reference.image_url, max_bytes=_MAX_REFERENCE_BYTES)
    except InvalidRequest as error:
        raise InvalidRequest(error.message, param="input_reference", code=error.code) from error
    return fetched.data


async def _check_reference(call: Call, model: ServedModel, request: VideoInput) -> None:
    if request.reference is not None:
        check = ReferenceCheck(reference=request.reference, width=request.width, height=request.height)
        await call.run(model, check)
