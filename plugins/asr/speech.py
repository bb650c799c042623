"""From probabilities to stretches of speech, frame by frame, for files and for live streams alike. Pure Python."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_HYSTERESIS = 0.15
"""Speech goes on down to this much below the threshold, as in Silero's own recipe: endings are quiet."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Speech without a pause, in frames of the detector; ``stop`` is the first frame after it."""

    start: int
    stop: int


class SpeechTracker:
    """Finds stretches in a stream of probabilities. Owner: who feeds it.

    A stretch ends when ``silence_frames`` in a row are quiet, or when it has ``max_frames``: then it is cut at its least
    probable frame of the last half, so that no word is cut that need not be.

    Args:
        threshold: Speech begins at this probability.
        silence_frames: Quiet frames that end a stretch.
        max_frames: Longest stretch; None for no bound.

    Attributes:
        num_frames: Frames fed so far.
    """

    def __init__(self, *, threshold: float, silence_frames: int, max_frames: int | None = None) -> None:
        self._threshold = threshold
        self._quiet_below = max(threshold - _HYSTERESIS, 0.01)
        self._silence_frames = max(1, silence_frames)
        self._max_frames = max_frames
        self._start: int | None = None
        self._quiet_since: int | None = None
        self._recent: deque[float] = deque(maxlen=max_frames // 2 if max_frames else 1)
        self.num_frames = 0

    @property
    def speech_start(self) -> int | None:
        """First frame of the stretch that is not over yet; None in silence."""
        return self._start

    def feed(self, probability: float) -> Stretch | None:
        """Takes the next frame; returns the stretch that it ended, if any."""
        frame = self.num_frames
        self.num_frames += 1
        self._recent.append(probability)
        if self._start is None:
            if probability >= self._threshold:
                self._start, self._quiet_since = frame, None
            return None
        if probability >= self._threshold:
            self._quiet_since = None
        elif probability < self._quiet_below and self._quiet_since is None:
            self._quiet_since = frame
        if self._quiet_since is not None and self.num_frames - self._quiet_since >= self._silence_frames:
            return self._end(self._quiet_since)
        if self._max_frames is not None and self.num_frames - self._start >= self._max_frames:
            return self._cut()
        return None

    def finish(self) -> Stretch | None:
        """The stretch that the end of the stream ends, if any."""
        if self._start is None:
            return None
        return self._end(self.num_frames if self._quiet_since is None else self._quiet_since)

    def _end(self, stop: int) -> Stretch:
        assert self._start is not None
        found = Stretch(self._start, stop)
        self._start = self._quiet_since = None
        return found

    def _cut(self) -> Stretch:
        assert self._start is not None
        recent = list(self._recent)
        least = min(range(len(recent)), key=recent.__getitem__)
        stop = max(self._start + 1, self.num_frames - len(recent) + least)
        found = Stretch(self._start, stop)
        self._start, self._quiet_since = stop, None
        return found
