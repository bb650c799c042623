"""Readers of pictures and sounds."""

from __future__ import annotations

import io
import wave
from typing import Any, cast

import av
import numpy as np
from PIL import Image

from sixfold.core.errors import InvalidRequest
from sixfold.core.pictures import flatten, read_picture
from sixfold.plugins.asr.audio import decode_file, decode_pcm
from sixfold.plugins.asr.job import usual_duration_s
from sixfold.plugins.asr.schema import TranscribeInput
from sixfold.plugins.embedding.clip.images import decode_base64
from sixfold.plugins.video.reference import read_reference
from tests.fuzz.target import Target, as_file, check, text_of

_MAX_PIXELS = 10_000
_MAX_DURATION_S = 60.0


def picture(form: str, mode: str = "RGB", **options: Any) -> bytes:
    """A small picture as a file."""
    file = io.BytesIO()
    Image.new(mode, (16, 12), 3 if mode == "P" else None).save(file, form, **options)
    return file.getvalue()


def sound(container: str, codec: str, rate_hz: int = 16_000) -> bytes:
    """A tenth of a second as a file."""
    file = io.BytesIO()
    opened: Any = av  # typed in part
    with opened.open(file, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=rate_hz)
        stream.layout = "mono"
        for frame in _tone(stream, rate_hz):
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def _tone(stream: Any, rate_hz: int) -> list[Any]:
    samples = (np.sin(np.arange(rate_hz // 10) / 10) * 8000).astype("<i2")
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
    frame.sample_rate = rate_hz
    return cast("list[Any]", av.AudioResampler(format=stream.format, layout="mono", rate=rate_hz).resample(frame))


def _picture(data: bytes) -> None:
    image = read_picture(data, param="image", max_pixels=_MAX_PIXELS)
    check(image.width * image.height <= _MAX_PIXELS, "a picture larger than was asked for")
    check(flatten(image).mode == "RGB", "a picture in another mode")


def _reference(data: bytes) -> None:
    read_reference(data, width=16, height=12)


def _audio(data: bytes) -> None:
    num_samples = sum(len(block) for block in decode_file(data, max_duration_s=_MAX_DURATION_S))
    check(0 < num_samples <= _MAX_DURATION_S * 16_000, "sound beyond the bound")


def _guess(data: bytes) -> None:
    seconds = usual_duration_s(TranscribeInput(audio=data))
    check(seconds >= 0, "a guess that is no time")


def _pcm(data: bytes) -> None:
    rate_hz = (16_000, 24_000, 8_000)[len(data) % 3]
    num_samples = sum(len(block) for block in decode_pcm(data, rate_hz))
    check(num_samples <= len(data) * 2, "more sound than was sent")


def _base64(data: bytes) -> None:
    decode_base64(text_of(data), "input.0")


def _wav() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(bytes(3200))
    return file.getvalue()


def _listed() -> bytes:
    path = as_file(_wav(), "named.wav")
    return b"ffconcat version 1.0\nfile '" + str(path).encode() + b"'\n"


_PICTURES = (
    picture("PNG"),
    picture("PNG", "RGBA"),
    picture("PNG", "P", transparency=0),
    picture("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    picture("WEBP", lossless=True),
    picture("GIF", "P"),
    picture("BMP"),
    picture("TIFF", compression="tiff_lzw"),
)
_MARKS = (
    b"IHDR",
    b"IDAT",
    b"IEND",
    b"tRNS",
    b"eXIf",
    b"\xff\xd8",
    b"\xff\xe1",
    b"RIFF",
    b"WEBPVP8X",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"BM",
)

MEDIA_TARGETS = (
    Target(name="media.picture", read=_picture, seeds=(*_PICTURES, b"", b"%PDF-1.7", b"%!PS"), words=_MARKS),
    Target(name="media.reference", read=_reference, seeds=_PICTURES[:5], words=_MARKS),
    Target(
        name="media.audio",
        read=_audio,
        seeds=(
            _wav(),
            sound("flac", "flac"),
            sound("mp3", "libmp3lame"),
            sound("ogg", "libopus", 48_000),
            sound("mp4", "aac"),
            sound("webm", "libopus", 48_000),
            b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
            _listed(),
        ),
        words=(
            b"RIFF",
            b"WAVEfmt ",
            b"data",
            b"fLaC",
            b"OggS",
            b"OpusHead",
            b"ftyp",
            b"moov",
            b"mdat",
            b"ID3",
            b"\x1aE\xdf\xa3",
        ),
        broke=(sound("mp3", "libmp3lame") + sound("mp3", "libmp3lame", 24_000),),  # its rate changes on the way
        max_bytes=16_384,
        budget_s=20.0,
    ),
    Target(name="media.audio_guess", read=_guess, seeds=(_wav(), b"RIFF", b""), words=(b"RIFF", b"WAVEfmt ")),
    Target(name="media.pcm", read=_pcm, seeds=(b"", b"\0", bytes(3000), bytes(range(256)) * 4)),
    Target(
        name="media.base64",
        read=_base64,
        refuses=(InvalidRequest,),
        seeds=(
            b"aGVsbG8=",
            b"data:image/png;base64,aGVsbG8=",
            b"data:text/plain,hello",
            b"data:;base64,",
            "é".encode(),
        ),
        words=(b"data:", b";base64,", b"image/"),
    ),
)
"""Pictures and sounds."""
