"""Cuts a stream of samples into windows of at most 30 s that begin and end in silence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sixfold.plugins.asr.schema import SAMPLE_RATE_HZ, VadSettings, VadState
from sixfold.plugins.asr.speech import SpeechTracker, Stretch
from sixfold.plugins.asr.vad import FRAME_SAMPLES, VoiceDetector

WINDOW_S = 30
_WINDOW_SAMPLES = WINDOW_S * SAMPLE_RATE_HZ
_MAX_GAP_SAMPLES = 3 * SAMPLE_RATE_HZ
"""Longer pauses are not heard at all: in them Whisper makes up text."""


@dataclass(frozen=True, slots=True)
class AudioWindow:
    """A piece of the file with speech in it.

    Attributes:
        start: Its first sample in the file.
        samples: At most 30 s.
        speech: The stretches of speech in it, (start, stop) in samples of the file.
    """

    start: int
    samples: NDArray[np.int16]
    speech: tuple[tuple[int, int], ...]


class WindowCutter:
    """Fed with samples in order, gives windows in order. What a window may still need is kept, the rest is dropped.

    Neighbouring stretches share a window as long as it stays within 30 s: the encoder always computes 30 s, so a full
    window is the cheapest. The audio between them is kept, so that times in a window are times in the file.

    Args:
        detector: Tells speech from silence.
        settings: Thresholds.
    """

    def __init__(self, detector: VoiceDetector, settings: VadSettings) -> None:
        self._detector = detector
        self._state = VadState()
        self._pad = settings.prefix_ms * SAMPLE_RATE_HZ // 1000
        self._pad = min(self._pad, _WINDOW_SAMPLES // 8)
        self._tracker = SpeechTracker(
            threshold=settings.threshold,
            silence_frames=round(settings.silence_ms * SAMPLE_RATE_HZ / 1000 / FRAME_SAMPLES),
            max_frames=(_WINDOW_SAMPLES - 2 * self._pad) // FRAME_SAMPLES,
        )
        self._kept = np.zeros(0, dtype=np.int16)
        self._kept_start = 0
        self._unheard = np.zeros(0, dtype=np.int16)
        self._open: list[tuple[int, int]] = []
        self.num_samples = 0

    def feed(self, samples: NDArray[np.int16]) -> list[AudioWindow]:
        """Takes the next samples; returns the windows that are complete."""
        self.num_samples += len(samples)
        self._kept = np.concatenate([self._kept, samples])
        self._unheard = np.concatenate([self._unheard, samples])
        num_whole = len(self._unheard) // FRAME_SAMPLES * FRAME_SAMPLES
        found = self._hear(self._unheard[:num_whole])
        self._unheard = self._unheard[num_whole:]
        self._forget()
        return found

    def finish(self) -> list[AudioWindow]:
        """The windows that the end of the audio completes."""
        rest = np.pad(self._unheard, (0, -len(self._unheard) % FRAME_SAMPLES))
        found = self._hear(rest)
        last = self._tracker.finish()
        if last is not None:
            found += self._add(last)
        if self._open:
            found.append(self._close(self.num_samples))
        return found

    def _hear(self, samples: NDArray[np.int16]) -> list[AudioWindow]:
        values, self._state = self._detector.probabilities(samples, self._state)
        found: list[AudioWindow] = []
        for value in values.tolist():
            stretch = self._tracker.feed(value)
            if stretch is not None:
                found += self._add(stretch)
        return found

    def _add(self, stretch: Stretch) -> list[AudioWindow]:
        start = stretch.start * FRAME_SAMPLES
        stop = min(stretch.stop * FRAME_SAMPLES, self.num_samples)
        found: list[AudioWindow] = []
        if self._open:
            fits = stop + self._pad - max(0, self._open[0][0] - self._pad) <= _WINDOW_SAMPLES
            if not fits or start - self._open[-1][1] > _MAX_GAP_SAMPLES:
                found.append(self._close(start))
        self._open.append((start, stop))
        return found

    def _close(self, next_start: int) -> AudioWindow:
        """Makes the open window; its padding never reaches into the speech that follows."""
        start = max(self._kept_start, self._open[0][0] - self._pad)
        stop = min(self._open[-1][1] + self._pad, max(next_start, self._open[-1][1]), start + _WINDOW_SAMPLES)
        samples = self._kept[start - self._kept_start : stop - self._kept_start].copy()
        window = AudioWindow(start, samples, tuple(self._open))
        self._open = []
        # What follows may pad back to here, not into this window's speech.
        self._drop_before(window.speech[-1][1])
        return window

    def _forget(self) -> None:
        starts = [start for start, _stop in self._open[:1]]
        if not starts:
            at = self._tracker.speech_start
            starts = [(self._tracker.num_frames if at is None else at) * FRAME_SAMPLES]
        self._drop_before(starts[0] - self._pad)

    def _drop_before(self, sample: int) -> None:
        num = min(max(0, sample - self._kept_start), len(self._kept))
        self._kept = self._kept[num:]
        self._kept_start += num
