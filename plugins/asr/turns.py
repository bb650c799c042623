"""The audio of a live session: what is kept, where turns begin and end. Pure: probabilities come from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.asr.speech import SpeechTracker

FRAME_MS = 32
MAX_BUFFER_S = 600
_MAX_TURN_S = 60
_SAMPLE_BYTES = 2


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Somebody speaks."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """A turn is over: its audio left the buffer."""

    at_ms: int
    audio: bytes


class TurnBuffer:
    """Owner: one session.

    Args:
        rate_hz: Of the samples.
        threshold: Speech begins at this probability; None leaves turns to the client.
        prefix_ms: Audio kept before speech.
        silence_ms: A pause of this length ends a turn.
    """

    def __init__(self, *, rate_hz: int, threshold: float | None, prefix_ms: int = 0, silence_ms: int = 500) -> None:
        self.rate_hz = rate_hz
        self._threshold = threshold
        self._prefix_ms = prefix_ms
        self._silence_ms = silence_ms
        self._bytes = bytearray()
        self._start = 0  # bytes of the session before the first one that is kept
        self._heard = 0  # bytes of the session that the detector got
        self._frame_bytes = rate_hz * FRAME_MS // 1000 * _SAMPLE_BYTES
        self._tracker = self._new_tracker()
        self._first_frame = 0  # of the session, of the tracker's frame 0

    @property
    def duration_ms(self) -> int:
        """Audio in the buffer."""
        return self._ms(len(self._bytes))

    def append(self, data: bytes) -> None:
        """Takes more samples.

        Raises:
            InvalidRequest: More than ten minutes are waiting for a commit.
        """
        if len(self._bytes) + len(data) > MAX_BUFFER_S * self.rate_hz * _SAMPLE_BYTES:
            raise InvalidRequest(f"The buffer holds {MAX_BUFFER_S} s at most. Commit or clear it.", param="audio")
        self._bytes += data

    def unheard(self) -> bytes:
        """Whole frames that the detector must hear next; b"" if turns are the client's or too little has come."""
        if self._threshold is None:
            return b""
        begin = self._heard - self._start
        size = (len(self._bytes) - begin) // self._frame_bytes * self._frame_bytes
        return bytes(self._bytes[begin : begin + size])

    def hear(self, probabilities: Sequence[float]) -> list[SpeechStarted | TurnEnded]:
        """Takes the probabilities of what `unheard` gave; returns what happened, in order."""
        found: list[SpeechStarted | TurnEnded] = []
        for probability in probabilities:
            was_speech = self._tracker.speech_start is not None
            stretch = self._tracker.feed(probability)
            self._heard += self._frame_bytes
            if not was_speech and self._tracker.speech_start is not None:
                found.append(SpeechStarted(self._ms(self._turn_start())))
            if stretch is not None:
                found.append(TurnEnded(self._ms(self._heard), self._take(self._heard)))
                if self._tracker.speech_start is not None:  # a turn was cut for its length, and speech goes on
                    found.append(SpeechStarted(self._ms(self._heard)))
        if self._tracker.speech_start is None:
            self._drop_before(self._heard - self._prefix_bytes())
        return found

    def commit(self) -> bytes:
        """Takes all that is there: the client ends the turn.

        Raises:
            InvalidRequest: Nothing is there.
        """
        if self.duration_ms < 100:
            raise InvalidRequest(
                f"The buffer holds {self.duration_ms} ms of audio; a turn needs 100 ms.",
                code="input_audio_buffer_commit_empty",
            )
        return self.clear()

    def clear(self) -> bytes:
        """Takes all that is there, however little, and listens anew."""
        audio = self._take(self._start + len(self._bytes))
        self._restart()
        return audio

    def _restart(self) -> None:
        self._heard = self._start
        self._tracker = self._new_tracker()
        self._first_frame = self._heard // self._frame_bytes

    def _new_tracker(self) -> SpeechTracker:
        return SpeechTracker(
            threshold=self._threshold or 0.5,
            silence_frames=max(1, round(self._silence_ms / FRAME_MS)),
            max_frames=_MAX_TURN_S * 1000 // FRAME_MS,
        )

    def _turn_start(self) -> int:
        frame = self._tracker.speech_start
        assert frame is not None
        return max(self._start, self._heard - self._frame_bytes - self._prefix_bytes())

    def _take(self, stop: int) -> bytes:
        size = stop - self._start
        taken = bytes(self._bytes[:size])
        del self._bytes[:size]
        self._start = stop
        return taken

    def _drop_before(self, byte: int) -> None:
        self._take(max(self._start, byte))

    def _prefix_bytes(self) -> int:
        return self.rate_hz * self._prefix_ms // 1000 * _SAMPLE_BYTES

    def _ms(self, num_bytes: int) -> int:
        return num_bytes * 1000 // (self.rate_hz * _SAMPLE_BYTES)
