"""The video model as the core sees it: each request runs the unmodified pipeline, and their denoising steps share forwards."""

from __future__ import annotations

import copy
import functools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sixfold.core.batching.model import Finish, ModelInfo, StepRange
from sixfold.core.batching.parked import Parked, PipelineSide
from sixfold.core.errors import InvalidRequest
from sixfold.core.messages import Request, Usage
from sixfold.core.parallel.leader import Leader
from sixfold.core.rendezvous.calls import CallOwner, ModuleCall
from sixfold.core.rendezvous.lane import Lane
from sixfold.core.rendezvous.model import TorchPipelineModel
from sixfold.core.rendezvous.row_cache import RowCache
from sixfold.core.rendezvous.scoped import PipelinePlan, PipelineScope
from sixfold.core.rendezvous.warm_up import WarmUpSide
from sixfold.plugins.video.capabilities import Capabilities, Scalar
from sixfold.plugins.video.encoding import Format, encode
from sixfold.plugins.video.inspection import call_parameters
from sixfold.plugins.video.messages import (
    ReferenceAccepted,
    ReferenceCheck,
    VideoChunk,
    VideoFile,
    VideoInput,
    VideoOutput,
    VideoProgress,
    VideoRequest,
)
from sixfold.plugins.video.reference import blank_reference, read_reference
from sixfold.plugins.video.stills import spritesheet, thumbnail

Side = PipelineSide[ModuleCall, Any]

_CHUNK_BYTES = 256 * 1024


class VideoModel(TorchPipelineModel[VideoRequest, VideoOutput]):
    """A loaded pipeline.

    Args:
        info: What the loader found out.
        pipeline: Never changed; each request gets a copy that shares its weights.
        plan: Which of its components do what.
        can: Its limits.
        form: Of the files.
        caches: Row caches, by the identity of their module.
        max_cache_bytes: What caches of all clips may hold.
        device: Where it is.
        num_threads: CPU threads of a step.
        call_arguments: The operator's, for every call.
        parallel: The other ranks, if the denoisers are shared with them.
    """

    def __init__(
        self,
        *,
        info: ModelInfo,
        pipeline: Any,
        plan: PipelinePlan,
        can: Capabilities,
        form: Format,
        caches: Mapping[int, RowCache],
        max_cache_bytes: int,
        device: torch.device,
        num_threads: int,
        call_arguments: Mapping[str, Scalar],
        parallel: Leader | None = None,
    ) -> None:
        super().__init__(device, caches, max_cache_bytes, parallel=parallel)
        self._info = info
        self._pipeline = pipeline
        self._can = can
        self._form = form
        self._num_threads = num_threads
        self._call_arguments = dict(call_arguments)
        self._parameters = call_parameters(pipeline)
        # One decode at a time: the clips of one alone fill the device, and two together hold twice the memory.
        self._lane = Lane("vae", device, num_threads=num_threads, max_units=1)
        defers = parallel is not None and parallel.num_row_groups > 1
        self._scope = PipelineScope(plan, self._lane, defers=defers)
        self._counting = threading.Lock()  # pipelines end in threads of their own; guards the next six
        self._num_videos = 0
        self._num_frames = 0
        self._num_steps = 0
        self._denoise_s = 0.0
        self._decode_s = 0.0
        self._encode_s = 0.0

    @property
    def info(self) -> ModelInfo:
        """See `StepModel`."""
        return self._info

    @property
    def step_range(self) -> StepRange:
        """In latent positions. Clips of a real size fill a device and soon run one by one; small ones share: it is learned."""
        return StepRange(min_units=1, initial_units=262_144, max_units=262_144, whole_jobs=True)

    def warm_up(self) -> None:
        """Where several ranks compute a step, makes the smallest clip and compares each forward with this process alone.

        Raises:
            ConfigError: The ranks compute something else.
        """
        if self._parallel is None:
            return
        can = self._can
        width, height = (max(side // 4 // can.size_multiple, 2) * can.size_multiple for side in (can.width, can.height))
        small = VideoInput(
            prompt="a red ball",
            width=width,
            height=height,
            num_frames=can.nearest_frames(1 + 2 * can.frames_multiple),
            fps=can.fps,
            num_inference_steps=2,
            guidance_scale=max(can.guidance_scale, 2.0),
            seed=0,
            reference=blank_reference(width, height) if can.image == "required" else None,
        )
        with self.comparing_ranks():
            self._scope.copy_for(self._pipeline, WarmUpSide(self.forward))(**self._arguments(small))

    def estimate_units(self, request: Request[VideoRequest]) -> int:
        """See `StepModel`: positions of the latents, for each step and each branch of guidance."""
        wanted = request.input
        if isinstance(wanted, ReferenceCheck):
            return 1
        can = self._can
        frames = (wanted.num_frames - 1) // can.frames_multiple + 1
        # The size multiple is the VAE's factor times the patch, which is 2 in most.
        positions = frames * max(1, wanted.width * wanted.height * 4 // can.size_multiple**2)
        branches = 2 if wanted.guidance_scale > 1 else 1
        return max(1, positions * branches * wanted.num_inference_steps)

    def prepare(self, request: Request[VideoRequest], piece: object) -> Sequence[Parked[ModuleCall, Any]]:
        """Runs the pipeline up to its first step: reference and prompt are encoded here. A check has no steps.

        Raises:
            InvalidRequest: The reference image can't be used.
        """
        wanted = request.input
        if isinstance(wanted, ReferenceCheck):
            read_reference(wanted.reference, width=wanted.width, height=wanted.height)
            return ()
        return super().prepare(request, piece)

    def finish(
        self, request: Request[VideoRequest], sequences: Sequence[Parked[ModuleCall, Any]]
    ) -> Finish[VideoOutput]:
        """What the pipeline returned."""
        if isinstance(request.input, ReferenceCheck):
            return Finish(result=ReferenceAccepted(), usage=Usage())
        return super().finish(request, sequences)

    def run_pipeline(self, request: Request[VideoRequest], piece: object, side: Side) -> Finish[VideoOutput]:
        """Runs the stock pipeline, then writes the file, both beside the steps of others. [own thread]"""
        wanted = request.input
        assert isinstance(wanted, VideoInput), "a check runs no pipeline"
        # Each thread has its own setting until it is told. Beside a GPU little is left for a CPU, and a team would stay.
        torch.set_num_threads(self._num_threads if self._device.type == "cpu" else 1)
        progress = _Progress(side)
        counted = functools.partial(_counted_scheduler, progress=progress)
        owner = CallOwner(request_id=request.request_id, cache_threshold=wanted.row_cache_threshold)
        pipeline = self._scope.copy_for(self._pipeline, side, owner=owner, scheduler=counted)
        video = pipeline(**self._arguments(wanted)).frames[0]
        side.leave()
        frames = to_frames(video)
        decoded_s = time.monotonic()
        data = encode(_checked(frames, side), fps=wanted.fps, form=self._form, num_threads=self._num_threads)
        for start in range(0, len(data), _CHUNK_BYTES):
            side.emit(VideoChunk(data=data[start : start + _CHUNK_BYTES]))
        self._count(progress, frames, decoded_s)
        return Finish(
            result=VideoFile(
                num_bytes=len(data),
                media_type=self._form.media_type,
                suffix=self._form.suffix,
                thumbnail=thumbnail(frames),
                spritesheet=spritesheet(frames),
            ),
            usage=Usage(counts={"frames": len(frames), "num_inference_steps": wanted.num_inference_steps}),
        )

    def stats(self) -> Mapping[str, float]:
        """See `Family.metrics` in plugin.py."""
        return {
            "videos_total": self._num_videos,
            "video_frames_total": self._num_frames,
            "num_inference_steps_total": self._num_steps,
            "denoise_step_latency_seconds_total": self._denoise_s,
            "vae_decode_seconds_total": self._decode_s,
            "video_encode_seconds_total": self._encode_s,
            "denoiser_forwards_total": self.num_forwards,
            "denoiser_rows_total": self.num_rows,
            "vae_waiting_requests": self._lane.num_waiting,
            "video_row_cache_bytes": self.cache_bytes,
            "video_row_cache_hits_total": sum(cache.num_hits for cache in self._caches.values()),
        }

    def close(self) -> None:
        """See `StepModel`."""
        self._lane.close()
        for cache in self._caches.values():
            cache.close()

    def _arguments(self, wanted: VideoInput) -> dict[str, Any]:
        """The pipeline's keyword arguments."""
        arguments: dict[str, Any] = {
            **self._call_arguments,
            "prompt": wanted.prompt,
            "width": wanted.width,
            "height": wanted.height,
            "num_frames": wanted.num_frames,
            "num_inference_steps": wanted.num_inference_steps,
            # On the CPU, so that a seed gives the same noise on every device.
            "generator": torch.Generator("cpu").manual_seed(wanted.seed),
            "output_type": "pt",
        }
        if "guidance_scale" in self._parameters:
            arguments["guidance_scale"] = wanted.guidance_scale
        if wanted.negative_prompt is not None:
            arguments["negative_prompt"] = wanted.negative_prompt
        if "frame_rate" in self._parameters:
            arguments["frame_rate"] = wanted.fps
        if wanted.reference is not None:
            arguments["image"] = read_reference(wanted.reference, width=wanted.width, height=wanted.height)
        elif self._can.image == "required":
            raise InvalidRequest("This model starts from an image.", param="input_reference")
        return arguments

    def forward(self, calls: Sequence[ModuleCall]) -> Sequence[Any]:
        """See `TorchPipelineModel`; measured."""
        began_s = time.monotonic()
        try:
            return super().forward(calls)
        finally:
            self._denoise_s += time.monotonic() - began_s

    def _count(self, progress: _Progress, frames: NDArray[np.uint8], decoded_s: float) -> None:
        with self._counting:
            self._num_videos += 1
            self._num_frames += len(frames)
            self._num_steps += progress.num_done
            self._decode_s += decoded_s - progress.last_s
            self._encode_s += time.monotonic() - decoded_s


class _Progress:
    """Counts the steps of one request and tells its client. Owner: the pipeline's thread."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self.num_done = 0
        self.last_s = time.monotonic()

    def step_done(self, num_steps: int) -> None:
        """One more timestep is done, of so many."""
        self.num_done += 1
        self.last_s = time.monotonic()
        self._side.emit(VideoProgress(num_steps_done=self.num_done, num_steps=num_steps))


def _counted_scheduler(scheduler: Any, *, progress: _Progress) -> Any:
    """A request's own scheduler, which tells how many of its timesteps are done."""
    own = copy.deepcopy(scheduler)
    step = own.step

    @functools.wraps(step)
    def counted(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        progress.step_done(len(own.timesteps))
        return result

    own.step = counted
    return own


def to_frames(video: torch.Tensor) -> NDArray[np.uint8]:
    """[frames, height, width, 3] from a pipeline's [frames, 3, height, width] in 0 to 1; rounded as diffusers does."""
    whole = (video.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return whole.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _checked(frames: NDArray[np.uint8], side: Side) -> Iterator[NDArray[np.uint8]]:
    """The frames one by one, until the request leaves."""
    for frame in frames:
        side.check()
        yield frame
