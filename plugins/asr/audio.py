"""Decodes any audio that FFmpeg reads into 16 kHz mono, block by block, within limits. Runs in the media pool."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.error import FFmpegError, InvalidDataError
from numpy.typing import NDArray

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.asr.schema import SAMPLE_RATE_HZ

Samples = NDArray[np.int16]

_BLOCK_SAMPLES = SAMPLE_RATE_HZ * 10
_MAX_CHANNELS = 64
_MAX_RATE_HZ = 768_000
_MAX_BAD_PACKETS = 100
"""A file with more broken packets than this is not audio that was damaged: it is no audio."""


def decode_file(data: bytes, *, max_duration_s: float, param: str = "file") -> Iterator[Samples]:
    """Yields blocks of about ten seconds.

    Args:
        data: The whole file.
        max_duration_s: Longer audio is refused while it is decoded, whatever its header says: a small file can hold days.
        param: The field of the request, for errors.

    Raises:
        InvalidRequest: Empty, corrupt, without an audio track, or too long.
    """
    if not data:
        raise InvalidRequest("The file is empty. Send the bytes of an audio or video file.", param=param)
    num_samples = 0
    try:
        for block in _blocks(data, param):
            num_samples += len(block)
            if num_samples > max_duration_s * SAMPLE_RATE_HZ:
                raise InvalidRequest(
                    f"The audio is longer than {max_duration_s:g} s, the most that one request may hold. Send it in parts.",
                    param=param,
                )
            yield block
    except FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise InvalidRequest(
            f"The file could not be decoded as audio: {reason}. Send wav, mp3, m4a, flac, ogg, webm or another common "
            "format, complete and undamaged.",
            param=param,
        ) from error
    if num_samples == 0:
        raise InvalidRequest("The file's audio track holds no sound.", param=param)


def decode_pcm(data: bytes, rate_hz: int) -> Iterator[Samples]:
    """Yields bare 16-bit little-endian mono samples, resampled if need be."""
    samples = np.frombuffer(data[: len(data) // 2 * 2], dtype="<i2")
    if rate_hz == SAMPLE_RATE_HZ or not len(samples):  # FFmpeg takes a frame of no samples for want of memory
        yield samples
        return
    resampler = _new_resampler()
    frame = AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
    frame.sample_rate = rate_hz
    yield from _resampled(frame, resampler)
    yield from _resampled(None, resampler)


def _blocks(data: bytes, param: str) -> Iterator[Samples]:
    pending: list[Samples] = []
    num_pending = 0
    for part in _parts(data, param):
        pending.append(part)
        num_pending += len(part)
        if num_pending >= _BLOCK_SAMPLES:
            yield np.concatenate(pending)
            pending, num_pending = [], 0
    if pending:
        yield np.concatenate(pending)


def _parts(data: bytes, param: str) -> Iterator[Samples]:
    # Playlists (HLS, DASH, concat) name further files and addresses. With no protocol allowed, FFmpeg opens none of them:
    # the upload itself needs none.
    options = {"protocol_whitelist": "none"}
    with av.open(io.BytesIO(data), mode="r", metadata_errors="ignore", options=options) as container:
        if not container.streams.audio:
            raise InvalidRequest("The file has no audio track.", param=param)
        stream = container.streams.audio[0]
        resampler, before = _new_resampler(), None
        num_bad = 0
        for packet in container.demux(stream):
            try:
                frames: list[Any] = list(packet.decode())
            except InvalidDataError:
                # Damaged spots are common in real recordings: players skip them, and so does this.
                num_bad += 1
                if num_bad > _MAX_BAD_PACKETS:
                    raise
                continue
            for frame in frames:
                _check(frame, param)
                frame.pts = None  # recordings with broken clocks are still sound
                form = (frame.format.name, frame.layout.name, frame.sample_rate)
                if before not in (None, form):  # files that were joined change on their way; a resampler can't
                    yield from _resampled(None, resampler)
                    resampler = _new_resampler()
                before = form
                yield from _resampled(frame, resampler)
        yield from _resampled(None, resampler)


def _check(frame: AudioFrame, param: str) -> None:
    if frame.layout.nb_channels > _MAX_CHANNELS or not 0 < frame.sample_rate <= _MAX_RATE_HZ:
        raise InvalidRequest(
            f"The audio has {frame.layout.nb_channels} channels at {frame.sample_rate} Hz; at most {_MAX_CHANNELS} "
            f"channels and {_MAX_RATE_HZ} Hz are read.",
            param=param,
        )


def _new_resampler() -> AudioResampler:
    return AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE_HZ)


def _resampled(frame: AudioFrame | None, resampler: AudioResampler) -> Iterator[Samples]:
    for piece in resampler.resample(frame):
        yield piece.to_ndarray().reshape(-1).astype(np.int16, copy=False)
