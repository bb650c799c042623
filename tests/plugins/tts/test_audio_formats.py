"""Every format, written in pieces and read back by decoders that people use."""

from __future__ import annotations

import io
import wave
from typing import Any, get_args

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from sixfold.plugins.tts.audio import RATE_HZ, make_encoder, media_type
from sixfold.plugins.tts.schema import AudioFormat

FORMATS: tuple[AudioFormat, ...] = get_args(AudioFormat)
DURATION_S = 3.0


def tone(rate_hz: int) -> NDArray[np.int16]:
    seconds = np.arange(int(rate_hz * DURATION_S)) / rate_hz
    return (np.sin(2 * np.pi * 440 * seconds) * 20_000).astype("<i2")


def encode(format: AudioFormat, rate_hz: int, num_parts: int = 5) -> bytes:
    encoder = make_encoder(format, rate_hz)
    parts = [encoder.feed(part.tobytes()) for part in np.array_split(tone(rate_hz), num_parts)]
    return b"".join([*parts, encoder.close()])


def decode(data: bytes) -> tuple[NDArray[np.float64], int]:
    """By ffmpeg: samples of -1 to 1 and their rate."""
    container: Any = av.open(io.BytesIO(data))
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
    frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]) / 32768, container.streams.audio[0].rate


@pytest.mark.parametrize("rate_hz", [24_000, 16_000, 22_050])
@pytest.mark.parametrize("format", [format for format in FORMATS if format != "pcm"])
def test_a_format_has_the_right_rate_length_and_pitch(format: AudioFormat, rate_hz: int) -> None:
    samples, rate = decode(encode(format, rate_hz))
    assert rate == (48_000 if format == "opus" else RATE_HZ)  # Opus is always decoded at 48 kHz
    assert len(samples) / RATE_HZ == pytest.approx(DURATION_S, abs=0.08)
    middle = samples[RATE_HZ : 2 * RATE_HZ]
    assert np.argmax(np.abs(np.fft.rfft(middle))) == 440
    assert np.abs(middle).max() == pytest.approx(20_000 / 32_768, rel=0.05)


@pytest.mark.parametrize("rate_hz", [24_000, 16_000])
def test_pcm_is_bare_little_endian_samples_at_24_khz(rate_hz: int) -> None:
    samples = np.frombuffer(encode("pcm", rate_hz), "<i2")
    assert len(samples) == pytest.approx(DURATION_S * RATE_HZ, abs=RATE_HZ * 0.01)
    if rate_hz == RATE_HZ:
        np.testing.assert_array_equal(samples, tone(rate_hz))


def test_a_wav_of_unknown_length_is_read_by_the_standard_library() -> None:
    with wave.open(io.BytesIO(encode("wav", RATE_HZ))) as reader:
        assert (reader.getnchannels(), reader.getsampwidth(), reader.getframerate()) == (1, 2, RATE_HZ)
        np.testing.assert_array_equal(np.frombuffer(reader.readframes(1 << 30), "<i2"), tone(RATE_HZ))


def test_a_wav_of_unknown_length_is_read_by_libsndfile() -> None:
    soundfile = pytest.importorskip("soundfile")
    samples, rate = soundfile.read(io.BytesIO(encode("wav", RATE_HZ)), dtype="int16")
    assert rate == RATE_HZ
    np.testing.assert_array_equal(samples, tone(RATE_HZ))


@pytest.mark.parametrize("format", FORMATS)
def test_sound_comes_out_before_the_end_is_known(format: AudioFormat) -> None:
    encoder = make_encoder(format, RATE_HZ)
    first = encoder.feed(tone(RATE_HZ).tobytes())
    whole = first + encoder.close()
    assert len(first) > 0.7 * len(whole)
    assert encoder.close() == b""


@pytest.mark.parametrize("format", FORMATS)
def test_the_pieces_do_not_matter_much(format: AudioFormat) -> None:
    assert len(encode(format, RATE_HZ, num_parts=1)) == pytest.approx(
        len(encode(format, RATE_HZ, num_parts=50)), rel=0.1
    )


def test_every_format_has_its_media_type() -> None:
    assert {format: media_type(format) for format in FORMATS} == {
        "mp3": "audio/mpeg",
        "opus": "audio/ogg",
        "aac": "audio/aac",
        "flac": "audio/flac",
        "wav": "audio/wav",
        "pcm": "audio/pcm",
    }
