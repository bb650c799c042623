"""What a diffusion model will take of the memory; imports nothing heavy."""

from __future__ import annotations

from typing import Any, cast

from sixfold.core.family import ModelFiles
from sixfold.core.memory.need import HOST, MemoryNeed, MemoryQuestion
from sixfold.core.memory.weights import weights_bytes
from sixfold.core.parallel.planner import ParallelShape
from sixfold.core.rendezvous.shape import denoiser_shape
from sixfold.plugins.image.options import ImageOptions

_USUAL_PIXELS = 1024 * 1024
# The last layers of a decoder hold an input, an output and a normalized copy of the whole picture at once.
_DECODER_COPIES = 3
_STEP_BYTES = 128 << 20
_CUDA_BYTES = 800 << 20
# Recorded forwards share what one of them holds between its layers: SDXL with graphs of up to 16 rows at 512 pixels had
# 10.8 GiB reserved, of which weights and decoding explain 7.
_GRAPH_BYTES = 3 << 30


def need(question: MemoryQuestion) -> MemoryNeed:
    """Weights of all components in their type, and the decoding of one picture of a usual size, which is the peak.

    Pictures may be larger up to ``max_pixels``: a server that draws many such should leave more room.
    """
    options = cast(ImageOptions, question.options)
    is_float32 = options.dtype == "float32" or (options.dtype == "auto" and question.device == HOST)
    itemsize = 4 if is_float32 else 2
    pixels = min(options.max_pixels, _USUAL_PIXELS)
    if options.size is not None:
        width, _, height = options.size.partition("x")
        pixels = int(width) * int(height)
    records = question.device != HOST and options.cuda_graph_rows != ()
    adapters = sum(weights_bytes(ref.local_path, itemsize=itemsize) for ref in options.lora.values())
    return MemoryNeed(
        weights_bytes=weights_bytes(question.path, itemsize=itemsize, recursive=True) + adapters,
        working_bytes=pixels * _decoder_channels(ModelFiles(question.path)) * _DECODER_COPIES * itemsize
        + (_STEP_BYTES if question.device == HOST else _CUDA_BYTES)
        + (_GRAPH_BYTES if records else 0),
    )


def shape(question: MemoryQuestion) -> ParallelShape:
    """For the planner of ranks: a usual picture with guidance."""
    options = cast(ImageOptions, question.options)
    pixels = min(options.max_pixels, _USUAL_PIXELS)
    side = int(pixels**0.5)
    is_float32 = options.dtype == "float32" or (options.dtype == "auto" and question.device == HOST)
    return denoiser_shape(
        ModelFiles(question.path),
        width=side,
        height=side,
        num_frames=1,
        guided=True,
        itemsize=4 if is_float32 else 2,
    )


def _decoder_channels(files: ModelFiles) -> int:
    """Channels that the decoder has at the picture's full size."""
    config: dict[str, Any] = files.json("vae/config.json")
    widths = config.get("decoder_block_out_channels") or config.get("block_out_channels") or (128,)
    return int(widths[0])
