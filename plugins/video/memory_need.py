"""What a video model will take of the memory; imports nothing heavy."""

from __future__ import annotations

from typing import Any, cast

from sixfold.core.family import ModelFiles
from sixfold.core.memory.need import HOST, MemoryNeed, MemoryQuestion
from sixfold.core.memory.weights import weights_bytes
from sixfold.core.parallel.planner import ParallelShape
from sixfold.core.rendezvous.shape import denoiser_shape
from sixfold.plugins.video.options import VideoOptions

_USUAL_SIZE = (832, 480)
_USUAL_FRAMES = 49
# Decoders go through a clip in parts; they hold an input, an output and a normalized copy of one.
_DECODED_FRAMES = 17
_DECODER_COPIES = 3
# Several clips at once, encoders at work and what libraries load with the first of them: 220 MiB were seen of the demo.
_STEP_BYTES = 256 << 20
_CUDA_BYTES = 800 << 20


def need(question: MemoryQuestion) -> MemoryNeed:
    """Weights of all components in their type, one clip of the default size, and the decoding of a part of it."""
    options = cast(VideoOptions, question.options)
    is_float32 = options.dtype == "float32" or (options.dtype == "auto" and question.device == HOST)
    itemsize = 4 if is_float32 else 2
    pixels = (options.default_width or _USUAL_SIZE[0]) * (options.default_height or _USUAL_SIZE[1])
    frames = options.default_frames or _USUAL_FRAMES
    decoded = pixels * min(frames, _DECODED_FRAMES) * _decoder_channels(ModelFiles(question.path))
    return MemoryNeed(
        weights_bytes=weights_bytes(question.path, itemsize=itemsize, recursive=True),
        working_bytes=decoded * _DECODER_COPIES * itemsize
        + pixels * frames * 3 * 4  # the finished frames
        + (_STEP_BYTES if question.device == HOST else _CUDA_BYTES),
    )


def shape(question: MemoryQuestion) -> ParallelShape:
    """For the planner of ranks: a clip of the default size with guidance."""
    options = cast(VideoOptions, question.options)
    is_float32 = options.dtype == "float32" or (options.dtype == "auto" and question.device == HOST)
    return denoiser_shape(
        ModelFiles(question.path),
        width=options.default_width or _USUAL_SIZE[0],
        height=options.default_height or _USUAL_SIZE[1],
        num_frames=options.default_frames or _USUAL_FRAMES,
        guided=options.default_guidance_scale is None or options.default_guidance_scale > 1,
        itemsize=4 if is_float32 else 2,
    )


def _decoder_channels(files: ModelFiles) -> int:
    """Channels that the decoder has at the frames' full size."""
    config: dict[str, Any] = files.json("vae/config.json")
    widths = config.get("decoder_block_out_channels") or config.get("block_out_channels")
    return int(widths[0]) if widths else int(config.get("base_dim") or config.get("decoder_base_dim") or 128)
