"""Tells a client how far its picture is: steps that are done, and previews."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from PIL import Image

from sixfold.core.batching.parked import PipelineSide
from sixfold.core.rendezvous.calls import ModuleCall
from sixfold.plugins.image.drawing import Drawing
from sixfold.plugins.image.linear_map import LinearMap
from sixfold.plugins.image.media import write_image
from sixfold.plugins.image.previews import decodable, decoded_image, preview_steps
from sixfold.plugins.image.schema import ImageInput, PartialImage, StepProgress


class Watcher:
    """Sends progress and previews of one picture. Used by its pipeline's thread.

    Args:
        wanted: The request.
        index: Of the picture.
        drawing: The picture's plan.
        side: Of its pipeline.
        writers: Encode previews, so that the steps go on.
        linear_map: Makes previews without the decoder, where the request wants them so.
    """

    def __init__(
        self,
        wanted: ImageInput,
        index: int,
        drawing: Drawing,
        side: PipelineSide[ModuleCall, Any],
        *,
        writers: ThreadPoolExecutor,
        linear_map: LinearMap | None,
    ) -> None:
        self._wanted = wanted
        self._index = index
        self._drawing = drawing
        self._side = side
        self._writers = writers
        self._linear_map = linear_map
        self._previews = preview_steps(drawing.num_steps, wanted.partial_images)
        self._num_done = 0
        self._pending: list[Future[None]] = []

    def after_step(self, pipeline: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's ``callback_on_step_end``."""
        self._num_done += 1
        self._side.emit(StepProgress(image_index=self._index, step=self._num_done, num_steps=self._drawing.num_steps))
        if self._num_done in self._previews:
            see = self._preview(pipeline, values["latents"])
            partial_index = self._previews.index(self._num_done)
            self._pending.append(self._writers.submit(self._send, see, partial_index))
        return {}

    def after_old_step(self, pipeline: Any, step: int, time: Any, latents: Any) -> None:
        """The ``callback`` of pipelines that have no other."""
        self.after_step(pipeline, step, time, {"latents": latents})

    def wait(self) -> None:
        """Returns when all previews are sent."""
        for pending in self._pending:
            pending.result()

    def _preview(self, pipeline: Any, latents: Any) -> Callable[[], Image.Image]:
        """Begins a preview; the result waits for it."""
        size = (self._drawing.width, self._drawing.height)
        latents = decodable(pipeline, latents.detach().clone(), *size)
        if self._drawing.linear_preview:
            assert self._linear_map is not None, "the planner refuses it without one"
            colours = self._linear_map.colours(latents)
            return lambda: colours.resize(size, Image.Resampling.BICUBIC)
        decoded: Future[Any] = pipeline.vae.start("decode", latents, return_dict=False)
        return lambda: decoded_image(pipeline, decoded.result())

    def _send(self, see: Callable[[], Image.Image], partial_index: int) -> None:
        data = write_image(see(), self._wanted.output_format, self._wanted.output_compression)
        self._side.emit(PartialImage(image_index=self._index, partial_index=partial_index, data=data))
