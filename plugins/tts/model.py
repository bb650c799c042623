"""What all speech models share: a request becomes one sequence a sentence, and its sound goes out in the text's order."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sixfold.core.batching.model import Finish, Outcome, StepModel
from sixfold.core.errors import ContextLengthExceeded, InvalidRequest, StepFailed
from sixfold.core.messages import Cost, Request, Usage
from sixfold.core.observations import Observations
from sixfold.plugins.tts.metrics import DURATION, RTF, TTFP
from sixfold.plugins.tts.playout import Place, Playout
from sixfold.plugins.tts.schema import SpeechInput, SpeechOutput
from sixfold.plugins.tts.sentences import split_sentences

Ids = NDArray[np.int64]
Samples = NDArray[np.float32]

TOKENS_A_SECOND = 40
"""Of ``usage.output_tokens``: one for 25 ms of sound, the frame of Kokoro's decoder."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One sentence of a request, and the playout that all of them share."""

    sentence: int
    text: str
    playout: Playout


class SpeechSequence:
    """A sentence, or a part of one that is too long for the model. Written by its model alone.

    Attributes:
        ids: The model's tokens, never empty.
        place: Where it stands in the request.
        ends_sentence: No other part of the sentence follows.
        playout: Shared by the request's sequences.
        wanted: What the client asked for.
    """

    __slots__ = ("ends_sentence", "ids", "place", "playout", "wanted")

    def __init__(self, ids: Ids, place: Place, playout: Playout, wanted: SpeechInput, *, ends_sentence: bool) -> None:
        self.ids = ids
        self.place = place
        self.playout = playout
        self.wanted = wanted
        self.ends_sentence = ends_sentence

    @property
    def seed(self) -> int:
        """Of this sequence: the same whatever else is computed."""
        entropy = (self.wanted.seed, self.place.sentence, self.place.part)
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])


@dataclass(slots=True)
class SpeechCounts:
    """What a model has done so far. Owner: the device thread."""

    num_sentences: int = 0
    num_tokens: int = 0
    audio_s: float = 0.0
    ttfp: Observations = field(default_factory=lambda: Observations(TTFP))
    rtf: Observations = field(default_factory=lambda: Observations(RTF))
    duration: Observations = field(default_factory=lambda: Observations(DURATION))


class SpeechModel(StepModel[SpeechSequence, SpeechInput, SpeechOutput]):
    """Base of the speech models.

    Args:
        rate_hz: Of the sound that the model makes.
        max_input_characters: Longest text.
        clock: ``time.monotonic`` or a fake.
    """

    def __init__(self, *, rate_hz: int, max_input_characters: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate_hz = rate_hz
        self._max_input_characters = max_input_characters
        self._clock = clock
        self._counts = SpeechCounts()

    @abstractmethod
    def tokens_of(self, sentence: str, wanted: SpeechInput) -> Sequence[Ids]:
        """The model's tokens of a sentence, in parts that it can take; none if nothing in it can be spoken. [pool]"""

    def new_sequence(
        self, ids: Ids, place: Place, playout: Playout, wanted: SpeechInput, *, ends_sentence: bool
    ) -> SpeechSequence:
        """The state of one part of a sentence; models with a class of their own return that. [pool]"""
        return SpeechSequence(ids, place, playout, wanted, ends_sentence=ends_sentence)

    def check(self, wanted: SpeechInput) -> None:
        """Raises InvalidRequest for what this model cannot do. [pool]"""
        return

    def estimate_units(self, request: Request[SpeechInput]) -> int:
        """See `StepModel`; a letter is about one token of these models."""
        return max(1, len(request.input.text))

    def split(self, request: Request[SpeechInput]) -> Sequence[Piece]:
        """One piece a sentence, so that the first is ready while the others are still turned into phonemes."""
        sentences = split_sentences(request.input.text[: self._max_input_characters + 1])
        playout = Playout(request.arrived_s, len(sentences))
        return [Piece(index, sentence, playout) for index, sentence in enumerate(sentences)]

    def prepare(self, request: Request[SpeechInput], piece: object) -> Sequence[SpeechSequence]:
        """Turns one sentence into tokens.

        Raises:
            ContextLengthExceeded: The whole text is too long.
            InvalidRequest: An unknown voice, or what else the model cannot do.
        """
        assert isinstance(piece, Piece)
        wanted = request.input
        if len(wanted.text) > self._max_input_characters:
            raise ContextLengthExceeded(
                f"input has more than {self._max_input_characters} characters. Send it in parts.", param="input"
            )
        self.check(wanted)
        parts = self.tokens_of(piece.text, wanted)
        if not parts:
            piece.playout.skip(piece.sentence)
        last = len(parts) - 1
        return [
            self.new_sequence(ids, Place(piece.sentence, part), piece.playout, wanted, ends_sentence=part == last)
            for part, ids in enumerate(parts)
        ]

    def cost(self, sequence: SpeechSequence) -> Cost:
        """All of its tokens at once: a sentence can't be cut."""
        units = len(sequence.ids)
        return Cost(units=units, min_units=units)

    def spoken(self, sequence: SpeechSequence, samples: Samples) -> Outcome[SpeechOutput]:
        """The outcome of a sequence whose sound is there, with all that may be given out now. [device]"""
        if not len(samples) or not np.isfinite(samples).all():
            return Outcome(done=True, error=StepFailed("The model made no sound for a sentence of this request."))
        playout, counts = sequence.playout, self._counts
        is_first = playout.num_samples == 0
        sound = playout.put(sequence.place, to_pcm16(samples), ends_sentence=sequence.ends_sentence)
        counts.num_sentences += 1
        counts.num_tokens += len(sequence.ids)
        counts.audio_s += len(samples) / self._rate_hz
        if not sound:
            return Outcome(done=True)
        if is_first:
            counts.ttfp.observe(self._clock() - playout.arrived_s)
        if playout.is_complete:
            duration_s = playout.num_samples / self._rate_hz
            counts.duration.observe(duration_s)
            counts.rtf.observe((self._clock() - playout.arrived_s) / duration_s)
        return Outcome(output=SpeechOutput(pcm=sound, rate_hz=self._rate_hz), done=True)

    def finish(self, request: Request[SpeechInput], sequences: Sequence[SpeechSequence]) -> Finish[SpeechOutput]:
        """The end of the sound.

        Raises:
            InvalidRequest: Nothing in the text could be spoken.
        """
        if not sequences:
            raise InvalidRequest("input has nothing that can be spoken: send some words.", param="input")
        duration_s = sequences[0].playout.num_samples / self._rate_hz
        return Finish(
            result=SpeechOutput(rate_hz=self._rate_hz),
            usage=Usage(
                counts={
                    "input_tokens": sum(len(sequence.ids) for sequence in sequences),
                    "output_tokens": max(1, round(duration_s * TOKENS_A_SECOND)),
                }
            ),
        )

    def stats(self) -> Mapping[str, float]:
        """See `Family.metrics` in plugin.py."""
        counts = self._counts
        return {
            "tts_sentences_total": counts.num_sentences,
            "tts_input_tokens_total": counts.num_tokens,
            "tts_audio_seconds_total": counts.audio_s,
            **counts.ttfp.values(),
            **counts.rtf.values(),
            **counts.duration.values(),
        }


def to_pcm16(samples: Samples) -> bytes:
    """Little-endian 16-bit samples; what is beyond full scale is clipped."""
    rounded: NDArray[np.int16] = np.rint(np.clip(samples, -1.0, 1.0) * 32767.0).astype("<i2")
    return rounded.tobytes()
