"""SpeechT5 of transformers: sentences of many requests are spoken together, a frame of each in every step."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sixfold.core.batching.model import Granted, ModelInfo, Outcome, StepRange
from sixfold.core.errors import InvalidRequest
from sixfold.core.messages import Cost, Request
from sixfold.core.runtime.cuda_graphs import Capture
from sixfold.plugins.tts.english.normalization import spell_out
from sixfold.plugins.tts.model import Ids, Samples, SpeechModel, SpeechSequence
from sixfold.plugins.tts.playout import Place, Playout
from sixfold.plugins.tts.schema import SpeechInput, SpeechOutput
from sixfold.plugins.tts.sentences import split_at
from sixfold.plugins.tts.speecht5_decoder import SpeechT5Decoder, SpokenRow
from sixfold.plugins.tts.voices import VoiceNames

_SPECIAL_TOKENS = 3  # the mark of a word's beginning and the end of the text, and one to spare
_MAX_SPOKEN = 32  # sentences at once: the caches of the longest that the published model takes are 76 MB each


class SpeechT5Sequence(SpeechSequence):
    """A sentence with what was spoken of it, None before its first step, and whether it is one of those that may be spoken."""

    __slots__ = ("has_place", "row")

    has_place: bool
    row: SpokenRow | None


class SpeechT5Model(SpeechModel):
    """A loaded SpeechT5.

    Args:
        info: What the loader found out.
        network: transformers' ``SpeechT5ForTextToSpeech`` in evaluation mode.
        vocoder: transformers' ``SpeechT5HifiGan``.
        tokenizer: transformers' ``SpeechT5Tokenizer``.
        speakers: Embedding of each voice, [channels], where the network is.
        voices: The names of these.
        max_input_characters: Longest text.
        num_threads: CPU threads of a step.
        capture: Makes a step repeatable; None computes it.
    """

    def __init__(
        self,
        *,
        info: ModelInfo,
        network: Any,
        vocoder: Any,
        tokenizer: Any,
        speakers: Mapping[str, Tensor],
        voices: VoiceNames,
        max_input_characters: int,
        num_threads: int,
        capture: Capture | None = None,
    ) -> None:
        super().__init__(rate_hz=int(vocoder.config.sampling_rate), max_input_characters=max_input_characters)
        self._info = info
        self._network = network
        self._vocoder = vocoder
        self._tokenizer = tokenizer
        self._speakers = speakers
        self._voices = voices
        self._num_threads = num_threads
        self._num_spoken = 0
        self._max_tokens = max_part_tokens(network.config)
        self._decoder = SpeechT5Decoder(network, max_rows=_MAX_SPOKEN, max_tokens=self._max_tokens, capture=capture)
        self._reads_figures = any(figure in tokenizer.get_vocab() for figure in "0123456789")

    @property
    def info(self) -> ModelInfo:
        """See `StepModel`."""
        return self._info

    @property
    def step_range(self) -> StepRange:
        """A frame of a sentence is one unit, reading its text one a token."""
        return StepRange(min_units=16, initial_units=256, max_units=4096)

    def warm_up(self) -> None:
        """Records what is recorded, and speaks one short sound."""
        torch.set_num_threads(self._num_threads)  # each thread has its own setting until it is told
        with torch.inference_mode():
            self._decoder.record()
            row = self._decoder.begin(self._ids([4, 5, 2]), self._speaker(""), 0)
            self._decoder.step([row])
            self._vocoder(self._decoder.spectrogram(row, 1))
            self._decoder.end(row)

    def estimate_units(self, request: Request[SpeechInput]) -> int:
        """See `StepModel`; a letter is read in one unit and spoken in some three."""
        return max(1, 4 * len(request.input.text))

    def check(self, wanted: SpeechInput) -> None:
        """Refuses unknown voices and other speeds."""
        self._voices.resolve(wanted.voice)
        if wanted.speed != 1.0:
            raise InvalidRequest(f"speed {wanted.speed:g}: this model speaks at its own pace. Use 1.", param="speed")

    def tokens_of(self, sentence: str, wanted: SpeechInput) -> Sequence[Ids]:
        """Ids of the letters, in parts."""
        sentence = unicodedata.normalize("NFKC", sentence)  # as the tokenizer would, so that letters count as tokens
        if not self._reads_figures:
            sentence = spell_out(sentence)
        parts = (part for part in split_at(sentence, self._max_tokens - _SPECIAL_TOKENS) if any(map(str.isalnum, part)))
        return [self._tokenizer(part, return_tensors="np")["input_ids"][0].astype("int64") for part in parts]

    def new_sequence(
        self, ids: Ids, place: Place, playout: Playout, wanted: SpeechInput, *, ends_sentence: bool
    ) -> SpeechSequence:
        """A sentence that was not read yet."""
        sequence = SpeechT5Sequence(ids, place, playout, wanted, ends_sentence=ends_sentence)
        sequence.has_place = False
        sequence.row = None
        return sequence

    def cost(self, sequence: SpeechSequence) -> Cost:
        """Its text when it is read, then a frame."""
        assert isinstance(sequence, SpeechT5Sequence)
        units = len(sequence.ids) if sequence.row is None else 1
        return Cost(units=units, min_units=units)

    def reserve(self, sequence: SpeechSequence, units: int) -> int:
        """A sentence has its place to its end, so nothing is ever preempted."""
        assert isinstance(sequence, SpeechT5Sequence)
        if not sequence.has_place:
            if self._num_spoken == _MAX_SPOKEN:
                return 0
            sequence.has_place = True
            self._num_spoken += 1
        return units

    @torch.inference_mode()
    def step(self, batch: Sequence[Granted[SpeechSequence]]) -> Sequence[Outcome[SpeechOutput]]:
        """A frame of every sentence; those that end become sound."""
        rows: list[SpokenRow] = []
        for granted in batch:
            sequence = granted.sequence
            assert isinstance(sequence, SpeechT5Sequence)
            if sequence.row is None:
                speaker = self._speaker(sequence.wanted.voice)
                sequence.row = self._decoder.begin(self._ids(sequence.ids), speaker, sequence.seed)
            rows.append(sequence.row)
        ends = self._decoder.step(rows)
        # Of all before anything is noted: where one fails, the step is repeated, and each must be as it was.
        sounds = [self._sound(row) if is_last else None for row, is_last in zip(rows, ends, strict=True)]
        for row in rows:
            row.num_frames += 1
        return [
            Outcome() if sound is None else self.spoken(granted.sequence, sound)
            for granted, sound in zip(batch, sounds, strict=True)
        ]

    def release(self, sequence: SpeechSequence) -> None:
        """Gives its caches back; the sound is in the playout."""
        assert isinstance(sequence, SpeechT5Sequence)
        self._num_spoken -= sequence.has_place
        sequence.has_place = False
        if sequence.row is not None:
            self._decoder.end(sequence.row)
        sequence.row = None

    def _sound(self, row: SpokenRow) -> Samples:
        """Up to the frame of this step."""
        found: Samples = self._vocoder(self._decoder.spectrogram(row, row.num_frames + 1)).float().cpu().numpy()
        return found

    def _ids(self, ids: Any) -> Tensor:
        return torch.as_tensor(ids, dtype=torch.long, device=self._network.device)[None]

    def _speaker(self, voice: str) -> Tensor:
        return torch.stack([self._speakers[name] for name in self._voices.resolve(voice)]).mean(dim=0, keepdim=True)


def max_part_tokens(config: Any) -> int:
    """Most tokens that may be read at once, so that what is spoken of them has a place in the decoder."""
    spoken = int(config.max_speech_positions * config.reduction_factor / SpeechT5Decoder.MAX_RATIO)
    return min(int(config.max_text_positions), spoken)
