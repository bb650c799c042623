"""The image model as the core sees it: each picture of a request is one running pipeline."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from sixfold.core.batching.model import Finish, ModelInfo, StepRange
from sixfold.core.batching.parked import Parked, PipelineSide
from sixfold.core.errors import InvalidRequest
from sixfold.core.messages import Request, Usage
from sixfold.core.parallel.leader import Leader
from sixfold.core.rendezvous.adapters import AdapterSwitch
from sixfold.core.rendezvous.calls import CallOwner, ModuleCall
from sixfold.core.rendezvous.graphs import RowGraphs
from sixfold.core.rendezvous.lane import Lane
from sixfold.core.rendezvous.model import TorchPipelineModel
from sixfold.core.rendezvous.row_cache import RowCache
from sixfold.core.rendezvous.scoped import PipelineScope
from sixfold.core.rendezvous.warm_up import WarmUpSide
from sixfold.plugins.image.drawing import Drawing, Planner, generator_for
from sixfold.plugins.image.linear_map import LinearMap
from sixfold.plugins.image.media import write_image
from sixfold.plugins.image.rules import plan
from sixfold.plugins.image.schema import ImageInput, ImageOutput, ImageResult, Picture
from sixfold.plugins.image.watcher import Watcher

Side = PipelineSide[ModuleCall, Any]


class ImageModel(TorchPipelineModel[ImageInput, ImageOutput]):
    """Draws with stock diffusers pipelines.

    Args:
        planner: Knows the pipelines.
        info: What the loader found out.
        device: Where the modules are.
        caches: Row caches, by the identity of their module.
        switches: Of the adapters of modules, likewise.
        linear_map: For cheap previews; None if there is none.
        num_threads: CPU threads of steps.
        graphs: Recorded forwards of the denoiser; None computes all.
        parallel: The other ranks, if the denoisers are shared with them.
    """

    def __init__(
        self,
        *,
        planner: Planner,
        info: ModelInfo,
        device: torch.device,
        caches: Mapping[int, RowCache],
        switches: Mapping[int, AdapterSwitch],
        linear_map: LinearMap | None,
        num_threads: int,
        graphs: RowGraphs | None = None,
        parallel: Leader | None = None,
    ) -> None:
        options = planner.options
        super().__init__(device, caches, options.max_cache_bytes, switches, graphs, parallel)
        defers = parallel is not None and parallel.num_row_groups > 1
        self._planner = planner
        self._options = options
        self._info = info
        self._num_threads = num_threads
        self._lane = Lane("decode", device, num_threads=options.decode_threads)
        self._scope = PipelineScope(plan(options.text_multiple), self._lane, switches, defers=defers)
        self._exact_scope = self._scope.with_plan(plan(0))
        self._linear_map = linear_map
        self._writers = ThreadPoolExecutor(max_workers=1, thread_name_prefix="previews")
        self._units_per_pixel = 1 / 256  # of one step; measured when warm
        self._num_pictures = 0
        self._num_pixels = 0

    @property
    def info(self) -> ModelInfo:
        """See `StepModel`."""
        return self._info

    @property
    def step_range(self) -> StepRange:
        """Latent positions; how many pictures share a step is learned, see `measure_company`."""
        most = self._options.max_step_units
        return StepRange(min_units=1, initial_units=most, max_units=most, whole_jobs=True)

    def estimate_units(self, request: Request[ImageInput]) -> int:
        """See `StepModel`; two rows a step, for guidance.

        Raises:
            InvalidRequest: More pictures or steps than allowed, or a size that the model can't draw.
        """
        wanted, planner = request.input, self._planner
        width, height, steps = planner.estimate(wanted)
        return max(1, int(width * height * self._units_per_pixel * steps * 2)) * wanted.n

    def split(self, request: Request[ImageInput]) -> Sequence[object]:
        """A piece is the index of a picture."""
        return range(request.input.n)

    def run_pipeline(self, request: Request[ImageInput], piece: object, side: Side) -> Finish[ImageOutput]:
        """Draws one picture and encodes it."""
        assert isinstance(piece, int)
        torch.set_num_threads(1)  # what is heavy runs on the device thread and in the lane
        wanted = request.input
        drawing = self._planner.plan(wanted, piece)
        scoped = self._scoped(request, piece, drawing, side)
        watcher = Watcher(wanted, piece, drawing, side, writers=self._writers, linear_map=self._linear_map)
        arguments = dict(drawing.arguments)
        if drawing.role.takes("callback_on_step_end"):
            arguments["callback_on_step_end"] = watcher.after_step
        elif drawing.role.takes("callback"):  # older pipelines
            arguments |= {"callback": partial(watcher.after_old_step, scoped), "callback_steps": 1}
        output = scoped(**arguments, generator=generator_for(drawing.seed), output_type="pil")
        if any(getattr(output, "nsfw_content_detected", None) or ()):
            raise InvalidRequest(
                "The safety checker that the model brings refused the picture. Change the prompt.",
                param="prompt",
                code="moderation_blocked",
            )
        image = output.images[0]
        data = write_image(image, wanted.output_format, wanted.output_compression)
        watcher.wait()
        result = ImageResult(
            pictures=(Picture(data=data, seed=drawing.seed),),
            width=image.width,
            height=image.height,
            num_inference_steps=drawing.num_steps,
        )
        positions = max(1, int(image.width * image.height * self._units_per_pixel))
        counts = {
            "text_tokens": drawing.text_tokens,
            "image_tokens": positions * len(wanted.images),
            "output_tokens": positions,
        }
        return Finish(result=result, usage=Usage(counts=counts))

    def _scoped(self, request: Request[ImageInput], index: int, drawing: Drawing, side: Side) -> Any:
        wanted = request.input
        threshold = wanted.row_cache_threshold
        if threshold is None:
            threshold = self._options.row_cache_threshold
        usable = threshold is not None and threshold >= 0.0 and self._caches and not wanted.exact
        owner = CallOwner(request_id=request.request_id, index=index, cache_threshold=threshold if usable else None)
        new_scheduler = drawing.scheduler
        return (self._exact_scope if wanted.exact else self._scope).copy_for(
            drawing.role.pipeline,
            side,
            variant=owner if wanted.exact else None,
            owner=owner,
            adapters=drawing.adapters,
            scheduler=copy.deepcopy if new_scheduler is None else lambda own: new_scheduler.from_config(own.config),
        )

    def finish(self, request: Request[ImageInput], sequences: Sequence[Parked[ModuleCall, Any]]) -> Finish[ImageOutput]:
        """All pictures of the request, in order."""
        ends = [sequence.finish for sequence in sequences]
        results = [end.result for end in ends if end is not None]
        counts = [end.usage.counts for end in ends if end is not None]
        usage = {
            "text_tokens": counts[0]["text_tokens"],
            "image_tokens": counts[0]["image_tokens"],
            "output_tokens": sum(each["output_tokens"] for each in counts),
        }
        first: ImageResult = results[0]
        pictures = tuple(picture for result in results for picture in result.pictures)
        self._num_pictures += len(pictures)
        self._num_pixels += len(pictures) * first.width * first.height
        result = ImageResult(
            pictures=pictures,
            width=first.width,
            height=first.height,
            num_inference_steps=first.num_inference_steps,
        )
        return Finish(result=result, usage=Usage(counts=usage))

    def warm_up(self) -> None:
        """Draws one picture in two steps, so that kernels exist, and measures what steps cost, alone and in company."""
        torch.set_num_threads(self._num_threads)
        role = self._planner.roles.generate
        if role is None:
            return
        request = Request(request_id="warm-up", input=ImageInput(num_inference_steps=2, seed=0), arrived_s=0.0)
        drawing = self._planner.plan(request.input, 0)
        side = WarmUpSide(self.forward)
        scoped = self._scoped(request, 0, drawing, side)
        with self.comparing_ranks():
            scoped(**drawing.arguments, generator=generator_for(0), output_type="pil")
        torch.set_num_threads(self._num_threads)
        self._units_per_pixel = side.units / side.num_calls / (drawing.width * drawing.height)
        if side.last_call is not None:
            self.measure_company(
                side.last_call, max_units=self._options.max_step_units, max_seconds=self._options.measure_s
            )

    def stats(self) -> Mapping[str, float]:
        """See `Family.metrics`."""
        return {
            "image_pictures_total": self._num_pictures,
            "image_pixels_total": self._num_pixels,
            "image_denoise_calls_total": self.num_calls,
            "image_denoise_forwards_total": self.num_forwards,
            "image_replayed_forwards_total": 0 if self._graphs is None else self._graphs.num_replays,
            "image_decode_calls_total": self._lane.num_calls - self._lane.num_unmerged,
            "image_decode_forwards_total": self._lane.num_forwards - self._lane.num_unmerged,
            "image_encode_calls_total": self._lane.num_unmerged,
            "image_row_cache_bytes": self.cache_bytes,
            "image_row_cache_hits_total": sum(cache.num_hits for cache in self._caches.values()),
        }

    def close(self) -> None:
        """Ends the threads."""
        self._lane.close()
        self._writers.shutdown(wait=True)
        for cache in self._caches.values():
            cache.close()
