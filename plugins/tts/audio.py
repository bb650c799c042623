"""Encodes sound while it is made: PCM in, bytes of the wanted format out, nothing held back but a codec's own frame.

Runs in a thread of the serving process. That is safe because it encodes samples that our own workers made: no byte of a
client reaches the codecs. It is cheap, too: 20 ms for ten seconds of MP3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, cast

import av
import numpy as np
from av.audio import AudioFrame

from sixfold.plugins.tts.schema import AudioFormat

RATE_HZ = 24_000
"""Of every answer, whatever the model's own rate: clients that play PCM count on it."""

_UNKNOWN_SIZE = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class _Codec:
    """How a format is made: ffmpeg's names of container and encoder, and what a client is told it is."""

    container: str
    encoder: str
    media_type: str
    bit_rate: int | None = None
    options: tuple[tuple[str, str], ...] = ()


_CODECS: dict[str, _Codec] = {
    # Without the Xing header, which would be written back into the beginning once the length is known.
    "mp3": _Codec(
        container="mp3", encoder="libmp3lame", media_type="audio/mpeg", bit_rate=64_000, options=(("write_xing", "0"),)
    ),
    "opus": _Codec(
        container="ogg",
        encoder="libopus",
        media_type="audio/ogg",
        bit_rate=32_000,
        options=(("page_duration", "200000"),),
    ),
    "aac": _Codec(container="adts", encoder="aac", media_type="audio/aac", bit_rate=64_000),
    "flac": _Codec(container="flac", encoder="flac", media_type="audio/flac"),
}
_OTHER_MEDIA_TYPES = {"wav": "audio/wav", "pcm": "audio/pcm"}

MEDIA_TYPES = (*(codec.media_type for codec in _CODECS.values()), *_OTHER_MEDIA_TYPES.values())
"""Of all formats."""


def media_type(format: AudioFormat) -> str:
    """For the header ``content-type``."""
    return _CODECS[format].media_type if format in _CODECS else _OTHER_MEDIA_TYPES[format]


class Encoder(Protocol):
    """Turns PCM into a stream of bytes; used by one thread at a time."""

    def feed(self, pcm: bytes) -> bytes:
        """Adds 16-bit samples and returns what is ready, at times nothing."""
        ...

    def close(self) -> bytes:
        """Returns the rest. Nothing may be fed afterwards; safe to repeat."""
        ...


def make_encoder(format: AudioFormat, rate_hz: int) -> Encoder:
    """The encoder of a format, for PCM of one channel at ``rate_hz``."""
    if format in _CODECS:
        return CodecEncoder(_CODECS[format], rate_hz)
    return PcmEncoder(rate_hz, header=wav_header() if format == "wav" else b"")


def wav_header() -> bytes:
    """The header of a WAV of unknown length, both sizes at their largest, as ffmpeg and OpenAI write into pipes.

    Players read to the end of such a stream; buffering the whole to know its length would cost the client the time to
    the first sound.
    """
    riff = struct.pack("<4sI4s", b"RIFF", _UNKNOWN_SIZE, b"WAVE")
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE_HZ, RATE_HZ * 2, 2, 16)
    return riff + form + struct.pack("<4sI", b"data", _UNKNOWN_SIZE)


class PcmEncoder:
    """Bare samples at 24 kHz, behind a header if there is one."""

    def __init__(self, rate_hz: int, header: bytes = b"") -> None:
        self._header = header
        self._rate_hz = rate_hz
        self._resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ) if rate_hz != RATE_HZ else None

    def feed(self, pcm: bytes) -> bytes:
        """See `Encoder`."""
        header, self._header = self._header, b""
        if self._resampler is None:
            return header + pcm
        return header + _joined(self._resampler.resample(_frame(pcm, self._rate_hz)))

    def close(self) -> bytes:
        """See `Encoder`."""
        resampler, self._resampler = self._resampler, None
        rest = _joined(resampler.resample(None)) if resampler is not None else b""
        header, self._header = self._header, b""
        return header + rest


class CodecEncoder:
    """A codec of ffmpeg in a container that can be written without going back."""

    def __init__(self, codec: _Codec, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._sink = _Sink()
        # av types its containers by what they may hold in general.
        self._container = cast("Any", av.open(self._sink, "w", format=codec.container, options=dict(codec.options)))
        self._stream = self._container.add_stream(codec.encoder, rate=RATE_HZ, layout="mono")
        if codec.bit_rate is not None:
            self._stream.bit_rate = codec.bit_rate
        self._num_samples = 0
        self._closed = False

    def feed(self, pcm: bytes) -> bytes:
        """See `Encoder`."""
        if pcm:
            frame = _frame(pcm, self._rate_hz)
            frame.pts = self._num_samples
            self._num_samples += frame.samples
            self._container.mux(self._stream.encode(frame))
        return self._sink.take()

    def close(self) -> bytes:
        """See `Encoder`."""
        if not self._closed:
            self._closed = True
            self._container.mux(self._stream.encode(None))
            self._container.close()
        return self._sink.take()


class _Sink:
    """What the container writes into. It has no seek, so that no muxer tries to go back."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        self._written += data
        return len(data)

    def take(self) -> bytes:
        written, self._written = bytes(self._written), bytearray()
        return written


def _frame(pcm: bytes, rate_hz: int) -> AudioFrame:
    frame = AudioFrame.from_ndarray(np.frombuffer(pcm, dtype="<i2")[None], format="s16", layout="mono")
    frame.sample_rate = rate_hz
    frame.time_base = Fraction(1, rate_hz)
    return frame


def _joined(frames: list[AudioFrame]) -> bytes:
    return b"".join(frame.to_ndarray().astype("<i2").tobytes() for frame in frames)
