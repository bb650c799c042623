"""Writes frames into a video file by PyAV, frame by frame: no more than one frame is held beside the encoder's own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from sixfold.core.errors import ConfigError

Frame = NDArray[np.uint8]
"""[height, width, 3], RGB."""

_BT709 = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How a codec is written.

    Attributes:
        codec: As the options name it.
        encoder: FFmpeg's name of the encoder.
        container: FFmpeg's name of the container.
        media_type: Of the file.
        suffix: Of the file's name.
        container_options: Put the index at the front, so that a player starts before it has the whole file.
        encoder_options: Visually lossless at a moderate speed.
    """

    codec: str
    encoder: str
    container: str
    media_type: str
    suffix: str
    container_options: dict[str, str]
    encoder_options: dict[str, str]


_MP4_OPTIONS = {"movflags": "+faststart"}
_WEBM_OPTIONS = {"cues_to_front": "1"}

_FORMATS = (
    Format(
        codec="h264",
        encoder="libx264",
        container="mp4",
        media_type="video/mp4",
        suffix=".mp4",
        container_options=_MP4_OPTIONS,
        encoder_options={"crf": "18", "preset": "veryfast"},
    ),
    Format(
        codec="h264",
        encoder="libopenh264",
        container="mp4",
        media_type="video/mp4",
        suffix=".mp4",
        container_options=_MP4_OPTIONS,
        encoder_options={"b": "6000000"},
    ),
    Format(
        codec="vp9",
        encoder="libvpx-vp9",
        container="webm",
        media_type="video/webm",
        suffix=".webm",
        container_options=_WEBM_OPTIONS,
        encoder_options={"crf": "24", "b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1"},
    ),
)
"""In the order of preference: every browser and phone plays the first.

No AV1: the only encoder of it in PyAV's wheels is SVT-AV1, which makes its threads and the calling one real-time when root
runs it. Processes started from there inherit that, and OpenMP's threads, which spin, then stop the whole machine.
"""


def choose_format(codec: str) -> Format:
    """The first format of this codec ("auto" for any) that the installed PyAV can write.

    Raises:
        ConfigError: It has no encoder for it.
    """
    wanted = [form for form in _FORMATS if codec in ("auto", form.codec)]
    for form in wanted:
        if form.encoder in av.codecs_available and _can_encode(form.encoder):
            return form
    names = ", ".join(form.encoder for form in wanted)
    raise ConfigError(
        f"options.video_codec is {codec!r}, but the installed PyAV {av.__version__} has none of the encoders {names}. "
        "Choose another codec, or install the wheel of PyAV from the Python package index."
    )


def _can_encode(name: str) -> bool:
    try:
        return av.Codec(name, "w").is_encoder
    except ValueError:  # PyAV's UnknownCodecError: only a decoder has this name
        return False


def encode(frames: Iterable[Frame], *, fps: int, form: Format, num_threads: int = 1) -> bytes:
    """The finished file: yuv420p in BT.709, the index at the front.

    An odd width or height is padded by one row or column that repeats the edge: yuv420p needs even ones.

    Args:
        frames: At least one, all of one size; read one after the other while the encoder runs.
        fps: Frames a second.
        form: From `choose_format`.
        num_threads: Of the encoder.
    """
    # FFmpeg moves the index to the front by reading the file again under its name: it needs a real file.
    descriptor, path = tempfile.mkstemp(suffix=form.suffix, prefix="sixfold-video-")
    os.close(descriptor)
    try:
        with av.open(path, "w", format=form.container, options=form.container_options) as container:
            _write(container, frames, fps=fps, form=form, num_threads=num_threads)
        with open(path, "rb") as file:
            return file.read()
    finally:
        os.unlink(path)


def _write(container: Any, frames: Iterable[Frame], *, fps: int, form: Format, num_threads: int) -> None:
    stream: Any = None
    for number, pixels in enumerate(frames):
        even = _even(pixels)
        if stream is None:
            stream = container.add_stream(form.encoder, rate=fps, options=form.encoder_options)
            stream.height, stream.width = even.shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.time_base = Fraction(1, fps)
            context = stream.codec_context
            context.thread_count = num_threads
            context.colorspace = context.color_primaries = context.color_trc = _BT709
        frame = av.VideoFrame.from_ndarray(even, format="rgb24").reformat(
            format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
        )
        frame.pts, frame.time_base = number, Fraction(1, fps)
        container.mux(stream.encode(frame))
    if stream is None:
        raise ValueError("a video needs at least one frame")
    container.mux(stream.encode(None))


def _even(pixels: Frame) -> Frame:
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(pixels)
