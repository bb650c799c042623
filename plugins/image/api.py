"""The HTTP face of pictures: OpenAI's ``/v1/images`` endpoints."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

from starlette.responses import Response

from sixfold.core.errors import NotFound
from sixfold.core.files import FileStore
from sixfold.core.serving.api import Call, ModalityAPI, Panel, Route, ServedModel, Services
from sixfold.plugins.image.bodies import GenerationsBody, PictureBody, StreamedBody, request_input
from sixfold.plugins.image.naming import find_model
from sixfold.plugins.image.schema import ImageInput, ImageResult
from sixfold.plugins.image.uploads import EditsBody, EditsForm, VariationsForm, edit_parts
from sixfold.plugins.image.wire import Echo, image_events, images_body

FILE_TTL_S = 3600.0
"""How long the file behind a ``url`` is kept."""

_HOST = re.compile(r"[A-Za-z0-9.\-:\[\]]{1,255}", re.ASCII)


class ImageAPI(ModalityAPI):
    """Serves every family of this modality."""

    modality = "image"
    _files: FileStore

    def routes(self) -> Sequence[Route]:
        """Draw, change, vary, and the files of pictures."""
        return (
            Route(path="/v1/images/generations", endpoint=self.generate, body=GenerationsBody, in_batches=True),
            Route(path="/v1/images/edits", endpoint=self.edit, body=EditsBody, form=EditsForm, in_batches=True),
            Route(path="/v1/images/variations", endpoint=self.vary, form=VariationsForm),
            Route(path="/v1/images/files/{file_id}", endpoint=self.file, method="GET"),
        )

    def panels(self) -> Sequence[Panel]:
        """The tab Draw."""
        script = Path(__file__).parent / "playground" / "draw.js"
        return (Panel(title="Draw", operation="generate", script=script, order=50),)

    async def startup(self, services: Services) -> None:
        """Opens the folder of files."""
        self._files = await asyncio.to_thread(FileStore, services.data_dir / "files", FILE_TTL_S)

    async def generate(self, call: Call) -> Response:
        """Draws pictures from a prompt.

        Raises:
            RequestError: The body is wrong, the model can't do it, or the request did not succeed.
        """
        body = await call.json(GenerationsBody)
        model, adapter = await find_model(call, body.model, "generate")
        wanted = request_input(body, "generate", adapter=adapter)
        return await self._answer(call, model, body, wanted, "image_generation")

    async def edit(self, call: Call) -> Response:
        """Changes an image, or fills the transparent part of a mask.

        Raises:
            RequestError: See `generate`.
        """
        body, images, mask = await edit_parts(call)
        model, adapter = await find_model(call, body.model, "edit")
        wanted = request_input(body, "edit", images=images, mask=mask, strength=body.strength, adapter=adapter)
        return await self._answer(call, model, body, wanted, "image_edit")

    async def vary(self, call: Call) -> Response:
        """Draws pictures like one.

        Raises:
            RequestError: See `generate`.
        """
        body = await call.form(VariationsForm)
        model, adapter = await find_model(call, body.model, "vary")
        wanted = request_input(body, "vary", images=(body.image.data,), strength=body.strength, adapter=adapter)
        return await self._answer(call, model, body, wanted, "")

    async def file(self, call: Call) -> Response:
        """Sends a file that an answer named by ``url``.

        Raises:
            NotFound: There is none, or its time is over.
        """
        path = await asyncio.to_thread(self._files.path, call.path_params["file_id"])
        if path is None:
            raise NotFound("There is no such file, or its hour is over. Draw it again, or ask for b64_json.")
        return call.respond_file(path, media_type=f"image/{path.suffix.removeprefix('.')}")

    async def _answer(
        self, call: Call, model: ServedModel, body: PictureBody, wanted: ImageInput, prefix: str
    ) -> Response:
        echo = Echo.now(quality=wanted.quality, output_format=body.output_format, size=wanted.size)
        if isinstance(body, StreamedBody) and body.stream:
            running = await call.start(model, wanted)
            default_size = str(model.info.details.get("default_size", ""))
            return call.stream_sse(
                image_events(echo, running, prefix=prefix, default_size=default_size, tells_steps=body.progress)
            )
        finished = await call.run(model, wanted)
        result: ImageResult = finished.result
        urls: tuple[str, ...] = ()
        if body.response_format == "url":
            ids = await asyncio.to_thread(self._keep, result, body.output_format)
            urls = tuple(f"{_origin(call)}/v1/images/files/{file_id}" for file_id in ids)
        return call.respond(await asyncio.to_thread(images_body, echo, finished, urls))

    def _keep(self, result: ImageResult, suffix: str) -> list[str]:
        return [self._files.put(picture.data, f".{suffix}") for picture in result.pictures]


def _origin(call: Call) -> str:
    """Scheme and host by which the client came; "" (a relative link) if it does not say."""
    host = call.headers.get("host", "")
    if _HOST.fullmatch(host) is None:
        return ""
    scheme = "https" if call.headers.get("x-forwarded-proto") == "https" else "http"
    return f"{scheme}://{host}"
