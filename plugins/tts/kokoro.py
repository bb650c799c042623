"""Kokoro as the core sees it. Its ONNX form takes one sentence a call, so a step is what the lanes get done until one ends.

A sentence takes a lane when the scheduler's fair order lets it start, and leaves it when it is done or cancelled. So
sentences of many requests run beside each other, none waits for a longer one, and each is computed just as it is alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sixfold.core.batching.model import Granted, ModelInfo, Outcome, StepRange
from sixfold.core.errors import StepFailed
from sixfold.core.messages import Cost
from sixfold.plugins.tts.lanes import Lanes, Run
from sixfold.plugins.tts.model import Ids, Samples, SpeechModel, SpeechSequence
from sixfold.plugins.tts.playout import Place, Playout
from sixfold.plugins.tts.schema import SpeechInput, SpeechOutput
from sixfold.plugins.tts.sentences import split_at
from sixfold.plugins.tts.voices import VoiceNames

_log = logging.getLogger(__name__)

MAX_PHONEMES = 510
"""The network's context of 512 less the pad at each end; the voices have a style for each length up to it."""
RATE_HZ = 24_000

_UNBOUNDED = 1 << 40
_WAIT_S = 0.5  # a wait that nothing ends still returns, so that deadlines are kept
_WARM_UP_IDS = 40


class Network(Protocol):
    """The loaded network."""

    def run(self, ids: Ids, style: NDArray[np.float32], speed: float) -> Run:
        """A computation of one sentence, not begun yet.

        Args:
            ids: Phonemes without pads.
            style: [256], of a voice for this length.
            speed: 1 is the voice's own.
        """
        ...


class Phonemizer(Protocol):
    """Turns text into Kokoro's phonemes."""

    def phonemes(self, text: str) -> str:
        """Phonemes of one sentence, "" if nothing in it can be spoken. [pool]"""
        ...


class KokoroSequence(SpeechSequence):
    """A sentence with its computation, once that has begun."""

    __slots__ = ("future", "has_lane", "run")

    has_lane: bool
    run: Run | None
    future: Future[Samples] | None


class KokoroModel(SpeechModel):
    """A loaded Kokoro.

    Args:
        info: What the loader found out.
        network: Computes.
        phonemizer: Text to phonemes.
        vocabulary: Id of each phoneme.
        styles: By voice, [510, 256]: one for each number of phonemes.
        voices: The names of these.
        lanes: Where sentences are computed.
        max_input_characters: Longest text.
    """

    def __init__(
        self,
        *,
        info: ModelInfo,
        network: Network,
        phonemizer: Phonemizer,
        vocabulary: Mapping[str, int],
        styles: Mapping[str, NDArray[np.float32]],
        voices: VoiceNames,
        lanes: Lanes,
        max_input_characters: int,
    ) -> None:
        super().__init__(rate_hz=RATE_HZ, max_input_characters=max_input_characters)
        self._info = info
        self._network = network
        self._phonemizer = phonemizer
        self._vocabulary = vocabulary
        self._styles = styles
        self._voices = voices
        self._lanes = lanes
        self._num_taken = 0  # lanes; owner: the device thread

    @property
    def info(self) -> ModelInfo:
        """See `StepModel`."""
        return self._info

    @property
    def step_range(self) -> StepRange:
        """The lanes bound what runs, not the core's budget."""
        return StepRange(min_units=_UNBOUNDED, initial_units=_UNBOUNDED, max_units=_UNBOUNDED)

    def interrupt(self) -> None:
        """A step waits for the lanes; who comes may get a free one at once."""
        self._lanes.interrupt()

    def warm_up(self) -> None:
        """One short sentence in each lane, so that kernels and memory pools exist."""
        ids = np.full(_WARM_UP_IDS, next(iter(self._vocabulary.values())), dtype=np.int64)
        style = self._styles[self._voices.default][_WARM_UP_IDS]
        futures = [self._lanes.start(self._network.run(ids, style, 1.0)) for _ in range(self._lanes.num_lanes)]
        for future in futures:
            future.result()

    def check(self, wanted: SpeechInput) -> None:
        """Refuses unknown voices."""
        self._voices.resolve(wanted.voice)

    def tokens_of(self, sentence: str, wanted: SpeechInput) -> Sequence[Ids]:
        """Phonemes in parts of at most 510."""
        known = "".join(filter(self._vocabulary.__contains__, self._phonemizer.phonemes(sentence)))
        parts = split_at(known, MAX_PHONEMES) if known.strip() else ()
        return [np.array([self._vocabulary[phoneme] for phoneme in part], dtype=np.int64) for part in parts]

    def new_sequence(
        self, ids: Ids, place: Place, playout: Playout, wanted: SpeechInput, *, ends_sentence: bool
    ) -> SpeechSequence:
        """A sentence without a lane."""
        sequence = KokoroSequence(ids, place, playout, wanted, ends_sentence=ends_sentence)
        sequence.has_lane, sequence.run, sequence.future = False, None, None
        return sequence

    def cost(self, sequence: SpeechSequence) -> Cost:
        """Its phonemes when it starts, next to nothing while its lane works on it."""
        assert isinstance(sequence, KokoroSequence)
        units = len(sequence.ids) if sequence.future is None else 1
        return Cost(units=units, min_units=units)

    def reserve(self, sequence: SpeechSequence, units: int) -> int:
        """A lane is the memory that a sentence needs: without a free one it can't start."""
        assert isinstance(sequence, KokoroSequence)
        if not sequence.has_lane:
            if self._num_taken == self._lanes.num_lanes:
                return 0
            sequence.has_lane = True
            self._num_taken += 1
        return units

    def step(self, batch: Sequence[Granted[SpeechSequence]]) -> Sequence[Outcome[SpeechOutput]]:
        """Starts what is new and waits until any sentence is done, or somebody came or left."""
        sequences: list[KokoroSequence] = []
        for granted in batch:
            sequence = granted.sequence
            assert isinstance(sequence, KokoroSequence)
            if sequence.future is None:
                sequence.run = self._network.run(sequence.ids, self._style(sequence), sequence.wanted.speed)
                sequence.future = self._lanes.start(sequence.run)
            sequences.append(sequence)
        if not any(sequence.future is not None and sequence.future.done() for sequence in sequences):
            self._lanes.wait(_WAIT_S)
        return [self._outcome(sequence) for sequence in sequences]

    def release(self, sequence: SpeechSequence) -> None:
        """Frees its lane; a sentence that is not done is stopped at the network's next operation."""
        assert isinstance(sequence, KokoroSequence)
        if sequence.has_lane:
            sequence.has_lane = False
            self._num_taken -= 1
        if sequence.future is not None and not sequence.future.done():
            sequence.future.cancel()
            if sequence.run is not None:
                sequence.run.stop()
        sequence.run = sequence.future = None  # the sound is in the playout

    def close(self) -> None:
        """See `StepModel`."""
        self._lanes.close()

    def _style(self, sequence: SpeechSequence) -> NDArray[np.float32]:
        rows = [self._styles[name][len(sequence.ids) - 1] for name in self._voices.resolve(sequence.wanted.voice)]
        blend: NDArray[np.float32] = (np.stack(rows).sum(axis=0) / len(rows)).astype(np.float32)
        return blend

    def _outcome(self, sequence: KokoroSequence) -> Outcome[SpeechOutput]:
        future = sequence.future
        if future is None or not future.done():
            return Outcome()
        error = future.exception()
        if error is None:
            return self.spoken(sequence, future.result())
        failure = StepFailed("The model failed on a sentence of this request.")
        failure.__cause__ = error  # the core logs it
        return Outcome(done=True, error=failure)
