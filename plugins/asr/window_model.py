"""What every recognizer shares: a request becomes windows of speech, a window is a sequence, the result joins them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from sixfold.core.batching.model import Finish, ModelInfo, StepModel
from sixfold.core.errors import InvalidRequest
from sixfold.core.messages import Request, Usage
from sixfold.plugins.asr.backend import FRAMES_PER_S, Mel
from sixfold.plugins.asr.job import Job, usual_duration_s
from sixfold.plugins.asr.schema import (
    SAMPLE_RATE_HZ,
    AsrInput,
    AsrOutput,
    Segment,
    TranscribeInput,
    Transcript,
    VadInput,
    WindowDone,
)
from sixfold.plugins.asr.speakers import SpeakerModel, VoiceRegion, label_segments
from sixfold.plugins.asr.vad import LazyDetector
from sixfold.plugins.asr.windows import AudioWindow

_SMOOTHING = 0.1


class WindowSequence:
    """One window of a request. Written by `prepare` in the pool, then by the device thread.

    Attributes:
        job: What the windows of the request share.
        index: Place among the request's windows.
        start_s: Where the window begins in the file.
        last_speech_s: Where its last stretch of speech ends in the file.
        num_frames: Real frames of the window, 100 a second; 0 for the window of a file without speech.
        mel: [mels, frames].
        segments: What was heard so far, with times of the file.
        voices: Regions whose speaker is to be told, then with their embeddings.
        samples: Kept for the voices alone.
    """

    __slots__ = ("index", "job", "last_speech_s", "mel", "num_frames", "samples", "segments", "start_s", "voices")

    def __init__(self, job: Job, index: int, window: AudioWindow, mel: Mel) -> None:
        self.job = job
        self.index = index
        self.start_s = window.start / SAMPLE_RATE_HZ
        self.last_speech_s = window.speech[-1][1] / SAMPLE_RATE_HZ if window.speech else 0.0
        self.num_frames = mel.shape[1]
        self.mel = mel
        self.segments: list[Segment] = []
        self.voices: list[VoiceRegion] = []
        self.samples: NDArray[np.int16] | None = None
        if job.wanted.diarizes:
            self.samples = window.samples
            self.voices = [
                VoiceRegion(start / SAMPLE_RATE_HZ, stop / SAMPLE_RATE_HZ, start - window.start, stop - window.start)
                for start, stop in window.speech
            ]


WindowT = TypeVar("WindowT", bound=WindowSequence)


class WindowModel(StepModel[WindowT, AsrInput, AsrOutput], Generic[WindowT]):
    """The common half of a recognizer; a subclass says what a window costs and how one is heard.

    Args:
        info: What the loader found out.
        max_audio_s: Longest audio of one request.
        speakers: Tells voices apart; None if the model's entry names no network for it.
    """

    def __init__(self, *, info: ModelInfo, max_audio_s: float, speakers: SpeakerModel | None) -> None:
        self._info = info
        self._max_audio_s = max_audio_s
        self._detector = LazyDetector()
        self._speakers = speakers
        self._num_windows = 0
        self._audio_s = 0.0
        self._step_s = 0.0
        self._rtf = 0.0

    @property
    def info(self) -> ModelInfo:
        """See `StepModel`."""
        return self._info

    @abstractmethod
    def check(self, wanted: TranscribeInput) -> None:
        """Refuses what the model can't do.

        Raises:
            InvalidRequest: With the ``param``.
        """

    @abstractmethod
    def features(self, samples: NDArray[np.float32]) -> Mel:
        """What the network hears of at most 30 s of samples in -1..1: [channels, frames]. [pool]"""

    @abstractmethod
    def make_sequence(self, job: Job, index: int, window: AudioWindow, mel: Mel) -> WindowT:
        """The state of one window."""

    @abstractmethod
    def window_units(self, num_frames: int) -> int:
        """The whole work for a window, in units."""

    def estimate_units(self, request: Request[AsrInput]) -> int:
        """See `StepModel`; from the size of the file."""
        wanted = request.input
        if isinstance(wanted, VadInput):
            return 1
        duration_s = min(usual_duration_s(wanted), self._max_audio_s)
        num_whole, rest_s = divmod(duration_s, 30.0)
        return int(num_whole) * self.window_units(30 * FRAMES_PER_S) + self.window_units(int(rest_s * FRAMES_PER_S))

    def split(self, request: Request[AsrInput]) -> Sequence[object]:
        """A piece is two minutes of audio; a live chunk has one, which makes no sequence."""
        wanted = request.input
        if isinstance(wanted, VadInput):
            return (wanted,)
        job = Job(wanted, self._detector, max_duration_s=self._max_audio_s, features=self._mel)
        return (job,) * job.num_pieces

    def prepare(self, request: Request[AsrInput], piece: object) -> Sequence[WindowT]:
        """Decodes the next two minutes, finds speech, makes spectrograms.

        Raises:
            InvalidRequest: No audio, too long, or more than the model can do.
        """
        if isinstance(piece, VadInput):
            return ()
        assert isinstance(piece, Job)
        self.check(piece.wanted)
        found: list[WindowT] = []
        for index, window in piece.next_windows():
            first = piece.first_mel if index == 0 else None
            found.append(self.make_sequence(piece, index, window, self._mel(window) if first is None else first))
        return found

    def _mel(self, window: AudioWindow) -> Mel:
        if not len(window.samples):
            return np.zeros((1, 0), dtype=np.float32)
        return self.features(window.samples.astype(np.float32) / 32768.0)

    def finish(self, request: Request[AsrInput], sequences: Sequence[WindowT]) -> Finish[AsrOutput]:
        """Joins the windows; the speakers of all of them are told apart together."""
        wanted = request.input
        if isinstance(wanted, VadInput):
            return Finish(result=self._detector.get().answer(wanted), usage=Usage())
        windows = sorted(sequences, key=lambda window: window.index)
        job = windows[0].job
        segments = tuple(segment for window in windows for segment in window.segments)
        if wanted.diarizes and self._speakers is not None:
            voices = [voice for window in windows for voice in window.voices]
            segments = label_segments(segments, voices, self._speakers.recognize(wanted.known_speakers), self._speakers)
        duration_s = round(job.duration_s, 3)
        return Finish(
            result=Transcript(language=job.language, duration_s=duration_s, segments=segments),
            usage=Usage(counts={"audio_ms": round(duration_s * 1000)}),
        )

    def stats(self) -> Mapping[str, float]:
        """See `Family.metrics` in plugin.py."""
        return {
            "audio_duration_seconds_total": self._audio_s,
            "audio_windows_total": self._num_windows,
            "audio_compute_rtf": self._rtf,
        }

    def _check_diarization(self, wanted: TranscribeInput) -> None:
        if wanted.diarizes and self._speakers is None:
            raise InvalidRequest(
                "This model has no network that tells speakers apart: the operator must set its option 'diarization'.",
                param="response_format",
            )

    def _count(self, windows: Sequence[WindowT], step_s: float) -> None:
        """Counts finished windows and the time of a step. [device]"""
        audio_s = sum(window.num_frames for window in windows) / FRAMES_PER_S
        self._num_windows += len(windows)
        self._audio_s += audio_s
        self._step_s += step_s
        if audio_s:
            # Seconds of computing for a second of audio, over the steps since windows were last done.
            self._rtf += _SMOOTHING * (self._step_s / audio_s - self._rtf) if self._rtf else self._step_s / audio_s
            self._step_s = 0.0


def window_done(window: WindowSequence) -> WindowDone | None:
    """The increment for a finished window, if the client wants it and speakers need not be told first."""
    wanted = window.job.wanted
    if not wanted.streams or wanted.diarizes:
        return None
    return WindowDone(index=window.index, segments=tuple(window.segments))
