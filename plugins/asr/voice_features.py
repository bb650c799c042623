"""The spectrogram that the speaker network was trained on: 40 mel bands of power, 25 ms every 10 ms, at -30 dB."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from sixfold.plugins.asr.schema import SAMPLE_RATE_HZ

PARTIAL_FRAMES = 160
"""Frames of one input of the network, 1.6 s."""

_NUM_MELS = 40
_FFT = 400
_HOP = 160
_LEVEL_DB = -30.0
_MAX_GAIN = 1000.0


def voice_mel(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """[frames, 40] of samples in -1..1, brought to the level of the training data.

    The same values as librosa's ``melspectrogram`` with its defaults (Slaney's scale and area norm, Hann window, centred
    frames with zero padding), which the network's authors used.
    """
    rms = float(np.sqrt(np.mean(samples**2))) + 1e-9
    louder = samples * min(10 ** ((_LEVEL_DB - 20 * np.log10(rms)) / 20), _MAX_GAIN)
    padded = np.pad(louder, _FFT // 2)
    num_frames = 1 + (len(padded) - _FFT) // _HOP
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP][:num_frames]
    window = np.hanning(_FFT + 1)[:-1].astype(np.float32)
    power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2
    return (power @ _filters().T).astype(np.float32)


@functools.cache
def _filters() -> NDArray[np.float64]:
    """[40, 201]: triangles between points that are evenly apart on Slaney's scale, each of area 1 per hertz."""
    points = _hz(np.linspace(_mel(0.0), _mel(SAMPLE_RATE_HZ / 2), _NUM_MELS + 2))
    bins = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE_HZ)
    rising = (bins - points[:-2, None]) / (points[1:-1] - points[:-2])[:, None]
    falling = (points[2:, None] - bins) / (points[2:] - points[1:-1])[:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    filters: NDArray[np.float64] = triangles * (2.0 / (points[2:] - points[:-2]))[:, None]
    return filters


_LINEAR_HZ_PER_MEL = 200.0 / 3
_LOG_FROM_HZ = 1000.0
_LOG_STEP = np.log(6.4) / 27.0


def _mel(hz: float) -> float:
    if hz < _LOG_FROM_HZ:
        return hz / _LINEAR_HZ_PER_MEL
    return float(_LOG_FROM_HZ / _LINEAR_HZ_PER_MEL + np.log(hz / _LOG_FROM_HZ) / _LOG_STEP)


def _hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    edge = _LOG_FROM_HZ / _LINEAR_HZ_PER_MEL
    return np.where(
        mel < edge, mel * _LINEAR_HZ_PER_MEL, _LOG_FROM_HZ * np.exp(_LOG_STEP * (np.maximum(mel, edge) - edge))
    )
