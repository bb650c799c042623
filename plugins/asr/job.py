"""One request on its way from bytes to windows: decoded part by part, so that a long file starts before it is all read."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator

import numpy as np

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.asr.audio import Samples, decode_file, decode_pcm
from sixfold.plugins.asr.backend import Mel
from sixfold.plugins.asr.schema import SAMPLE_RATE_HZ, TranscribeInput
from sixfold.plugins.asr.vad import LazyDetector
from sixfold.plugins.asr.windows import AudioWindow, WindowCutter

_PIECE_S = 120.0
"""Audio of one piece of work in the pool, about half a second of decoding: long files take turns with short ones."""
_LEAST_BYTES_PER_S = 375
"""No codec in use is below 3 kbit/s; what is cut too generously ends in pieces with nothing to do."""
_USUAL_BYTES_PER_S = 8_000
_WAV_RATE_OFFSET = 28


class Job:
    """Shared by the pieces and windows of one request.

    The decoding part has one user at a time, whoever holds its lock: the pool may run pieces out of order and at once, so
    a piece is not a place in the file but a promise to decode as much again; the last to run decodes what is left.

    Args:
        wanted: The request.
        detector: Tells speech from silence.
        max_duration_s: Longer audio is refused.
        features: Makes a window's spectrogram.

    Attributes:
        language: Given or found by the first window's encoding; written by the device thread.
        first_mel: The first window's spectrogram, for the detection of the language; there before any later window.
    """

    def __init__(
        self,
        wanted: TranscribeInput,
        detector: LazyDetector,
        *,
        max_duration_s: float,
        features: Callable[[AudioWindow], Mel],
    ) -> None:
        self.wanted = wanted
        self.language = wanted.language
        self.first_mel: Mel | None = None
        self._detector = detector
        self._features = features
        self._max_duration_s = max_duration_s
        self._lock = threading.Lock()
        self._blocks: Iterator[Samples] | None = None
        self._cutter: WindowCutter | None = None
        self._ended = False
        self._num_windows = 0
        self._error: InvalidRequest | None = None
        self.num_pieces = max(1, math.ceil(min(max_duration_s, _longest_s(wanted)) / _PIECE_S))
        self._pieces_left = self.num_pieces

    @property
    def duration_s(self) -> float:
        """Seconds decoded so far; of the whole audio at the end."""
        return 0.0 if self._cutter is None else self._cutter.num_samples / SAMPLE_RATE_HZ

    def next_windows(self) -> list[tuple[int, AudioWindow]]:
        """Decodes the next part; returns its windows with their numbers. [pool]

        The last piece of a file without any speech returns one window without samples, so that the request has an end.

        Raises:
            InvalidRequest: The audio can't be decoded; every piece says so.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            try:
                return self._decode()
            except InvalidRequest as error:
                self._error = error
                raise

    def _decode(self) -> list[tuple[int, AudioWindow]]:
        self._pieces_left -= 1
        if self._ended:
            return []
        if self._cutter is None or self._blocks is None:
            self._cutter = WindowCutter(self._detector.get(), self.wanted.vad)
            self._blocks = self._open()
        goal = self._cutter.num_samples + _PIECE_S * SAMPLE_RATE_HZ
        found: list[AudioWindow] = []
        for block in self._blocks:
            found += self._cutter.feed(block)
            if self._cutter.num_samples >= goal and self._pieces_left:
                break
        else:
            self._ended = True
            found += self._cutter.finish()
            if not found and self._num_windows == 0:
                found.append(AudioWindow(0, np.zeros(0, dtype=np.int16), ()))
        if found and self._num_windows == 0 and self.language is None and len(found[0].samples):
            self.first_mel = self._features(found[0])
        numbered = list(enumerate(found, start=self._num_windows))
        self._num_windows += len(found)
        return numbered

    def _open(self) -> Iterator[Samples]:
        wanted = self.wanted
        if wanted.pcm_hz is not None:
            return decode_pcm(wanted.audio, wanted.pcm_hz)
        return decode_file(wanted.audio, max_duration_s=self._max_duration_s)


def usual_duration_s(wanted: TranscribeInput) -> float:
    """A guess from the size alone, for admission: exact for bare samples and wav, else 64 kbit/s."""
    rate = _bytes_per_s(wanted)
    return len(wanted.audio) / (_USUAL_BYTES_PER_S if rate is None else rate)


def _longest_s(wanted: TranscribeInput) -> float:
    rate = _bytes_per_s(wanted)
    return len(wanted.audio) / (_LEAST_BYTES_PER_S if rate is None else rate)


def _bytes_per_s(wanted: TranscribeInput) -> int | None:
    if wanted.pcm_hz is not None:
        return wanted.pcm_hz * 2
    head = wanted.audio[: _WAV_RATE_OFFSET + 4]
    if head[:4] == b"RIFF" and head[8:16] == b"WAVEfmt ":
        return max(_LEAST_BYTES_PER_S, int.from_bytes(head[_WAV_RATE_OFFSET:], "little"))
    return None
