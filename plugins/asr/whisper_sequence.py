"""The state of one window of Whisper between its steps."""

from __future__ import annotations

import enum
from typing import Any

from sixfold.plugins.asr.backend import Mel
from sixfold.plugins.asr.fallback import Attempt, temperatures
from sixfold.plugins.asr.job import Job
from sixfold.plugins.asr.tokens import Phrase
from sixfold.plugins.asr.window_model import WindowSequence
from sixfold.plugins.asr.windows import AudioWindow


class Stage(enum.Enum):
    """What a window's next step does."""

    ENCODE = "encode"
    GENERATE = "generate"
    ALIGN = "align"
    EMBED = "embed"


class WhisperSequence(WindowSequence):
    """A window of Whisper.

    Attributes:
        stage: The next step.
        seek: First frame of the window that was not heard yet.
        row: The backend's encoding from ``seek`` on.
        attempts: At what was encoded last.
        phrases: Heard last, waiting for their alignment.
        heard: Frames behind ``seek`` that these phrases cover.
        holds_slot: Whether it counts among the encoded windows.
    """

    __slots__ = ("attempts", "heard", "holds_slot", "phrases", "prefix", "row", "seek", "stage")

    def __init__(self, job: Job, index: int, window: AudioWindow, mel: Mel) -> None:
        super().__init__(job, index, window, mel)
        self.stage = Stage.ENCODE
        self.seek = 0
        self.row: Any = None
        self.prefix: tuple[int, ...] = ()
        self.attempts: list[Attempt] = []
        self.phrases: list[Phrase] = []
        self.heard = 0
        self.holds_slot = False

    @property
    def rest_frames(self) -> int:
        """Frames from ``seek`` to the window's end."""
        rest: int = self.num_frames - self.seek
        return rest

    @property
    def temperature(self) -> float:
        """Of the next attempt."""
        return temperatures(self.job.wanted.temperature)[len(self.attempts)]
