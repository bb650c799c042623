"""Decoding of what clients upload: every usual container, and everything that is no audio."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.asr.audio import decode_file, decode_pcm


def decode(data: bytes, max_duration_s: float = 60.0) -> NDArray[np.int16]:
    return np.concatenate(list(decode_file(data, max_duration_s=max_duration_s)))


@pytest.mark.parametrize(
    ("container", "codec", "rate_hz"),
    [
        ("wav", "pcm_s16le", 16_000),
        ("flac", "flac", 44_100),
        ("mp3", "libmp3lame", 44_100),
        ("ogg", "libopus", 48_000),
        ("webm", "libopus", 48_000),
        ("mp4", "aac", 48_000),
        ("matroska", "aac", 22_050),
        ("mpegts", "aac", 48_000),
    ],
)
def test_a_clip_in_any_container_is_heard_as_before(
    samples: dict[str, NDArray[np.int16]], make_file: Callable[..., bytes], container: str, codec: str, rate_hz: int
) -> None:
    original = samples["0880"]
    decoded = decode(make_file(original, container=container, codec=codec, rate_hz=rate_hz))
    assert abs(len(decoded) - len(original)) < 16_000 * 0.15
    size = min(len(decoded), len(original)) - 1600
    best = max(
        np.corrcoef(original[1000 : 1000 + size - 4000], decoded[at : at + size - 4000])[0, 1]
        for at in range(0, 3000, 4)
    )
    assert best > 0.7  # lossy codecs change phases; another clip is below 0.1


def test_a_lossless_clip_is_decoded_to_the_very_samples(
    samples: dict[str, NDArray[np.int16]], make_file: Callable[..., bytes]
) -> None:
    original = samples["0930"]
    assert np.array_equal(decode(make_file(original, container="wav", codec="pcm_s16le")), original)


@pytest.mark.parametrize(
    "data", [b"", b"no audio at all" * 50, b"RIFF" + bytes(200), b"ID3" + bytes(500), b"\x00" * 4096]
)
def test_what_is_no_audio_is_refused_with_its_param(data: bytes) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        decode(data)
    assert refusal.value.param == "file"


def test_a_header_without_sound_is_refused(
    make_file: Callable[..., bytes], samples: dict[str, NDArray[np.int16]]
) -> None:
    whole = make_file(samples["0880"], container="wav", codec="pcm_s16le")
    with pytest.raises(InvalidRequest, match=r"decoded|no sound") as refusal:
        decode(whole[:44])
    assert refusal.value.param == "file"


def test_a_video_without_a_sound_track_is_refused() -> None:
    out = io.BytesIO()
    with av.open(out, mode="w", format="mp4") as opened:
        file: Any = opened
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _number in range(5):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), dtype=np.uint8), format="rgb24")))
        file.mux(stream.encode(None))
    with pytest.raises(InvalidRequest, match="no audio track") as refusal:
        decode(out.getvalue())
    assert refusal.value.param == "file"


def test_a_small_file_that_holds_hours_is_stopped_while_it_is_decoded(make_file: Callable[..., bytes]) -> None:
    bomb = make_file(np.zeros(16_000 * 120, dtype=np.int16), container="flac", codec="flac")
    assert len(bomb) < 40_000
    blocks = 0
    with pytest.raises(InvalidRequest, match="longer than 30 s") as refusal:
        for _block in decode_file(bomb, max_duration_s=30.0):
            blocks += 1
    assert refusal.value.param == "file"
    assert blocks <= 3


def test_a_playlist_can_not_make_the_server_open_its_own_files(
    tmp_path: Path, make_file: Callable[..., bytes], samples: dict[str, NDArray[np.int16]]
) -> None:
    secret = tmp_path / "secret.ts"
    secret.write_bytes(make_file(samples["0880"], container="mpegts", codec="aac", rate_hz=48_000))
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:3.0,\n{secret}\n#EXT-X-ENDLIST\n".encode()
    concat = f"ffconcat version 1.0\nfile '{secret}'\n".encode()
    for playlist in (hls, concat):
        with pytest.raises(InvalidRequest):
            decode(playlist)


def test_a_damaged_spot_is_skipped(make_file: Callable[..., bytes], samples: dict[str, NDArray[np.int16]]) -> None:
    data = bytearray(make_file(samples["0870"], container="mp3", codec="libmp3lame"))
    data[len(data) // 2 : len(data) // 2 + 60] = bytes(60)
    assert len(decode(bytes(data))) > 0.9 * len(samples["0870"])


def test_bare_samples_are_resampled(samples: dict[str, NDArray[np.int16]]) -> None:
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)).astype("<i2")
    found = np.concatenate(list(decode_pcm(tone.tobytes(), 24_000)))
    assert abs(len(found) - 16_000) <= 32
    assert np.argmax(np.abs(np.fft.rfft(found[:16_000].astype(float)))) * 16_000 / len(found[:16_000]) == pytest.approx(
        440, abs=2
    )
    same = samples["0880"]
    assert np.array_equal(np.concatenate(list(decode_pcm(same.tobytes(), 16_000))), same)
