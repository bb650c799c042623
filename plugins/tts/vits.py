"""VITS and MMS of transformers: sentences of many requests in one step, each with its own random numbers.

What decides the length of a sentence (text encoder and durations) runs row by row: durations are rounded up, so the last
bit of a number may move a whole frame, and a sentence must not depend on who shares its batch. The flow runs padded, with a
mask, over sentences of near-equal length. The decoder has no mask and would hear the padding, so it runs row by row again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sixfold.core.batching.model import Granted, ModelInfo, Outcome, StepRange
from sixfold.core.errors import InvalidRequest
from sixfold.core.runtime.cuda_graphs import Capture
from sixfold.plugins.tts.english.normalization import spell_out
from sixfold.plugins.tts.model import Ids, Samples, SpeechModel, SpeechSequence
from sixfold.plugins.tts.schema import SpeechInput, SpeechOutput
from sixfold.plugins.tts.sentences import split_at
from sixfold.plugins.tts.vits_text import VitsText
from sixfold.plugins.tts.voices import VoiceNames

MAX_PART_CHARACTERS = 400
"""Of a sentence; longer ones are cut, because attention over letters grows with the square."""
_RANDOM: Any = torch.random  # without types
_MAX_WASTE = 1.25
"""Frames of the longest sentence of a padded batch over those of its shortest."""


@dataclass(frozen=True, slots=True)
class _Latents:
    """A sentence before the flow: [1, channels, frames], and its speaker's embedding."""

    index: int
    prior: Tensor
    speaker: Tensor | None

    @property
    def num_frames(self) -> int:
        return int(self.prior.shape[-1])


class VitsModel(SpeechModel):
    """A loaded VITS.

    Args:
        info: What the loader found out.
        network: transformers' ``VitsModel`` in evaluation mode.
        tokenizer: transformers' ``VitsTokenizer``.
        voices: Names of the speakers, in their order.
        max_input_characters: Longest text.
        max_batch_sentences: Most sentences of one padded batch.
        num_threads: CPU threads of a step.
        capture: Makes the reading of a text repeatable; None computes it.
    """

    def __init__(
        self,
        *,
        info: ModelInfo,
        network: Any,
        tokenizer: Any,
        voices: VoiceNames,
        max_input_characters: int,
        max_batch_sentences: int,
        num_threads: int,
        capture: Capture | None = None,
    ) -> None:
        super().__init__(rate_hz=int(network.config.sampling_rate), max_input_characters=max_input_characters)
        self._info = info
        self._network = network
        self._tokenizer = tokenizer
        self._voices = voices
        self._max_batch_sentences = max_batch_sentences
        self._num_threads = num_threads
        self._text = VitsText(network, capture)
        self._is_english = (tokenizer.language or "eng").lower() in ("eng", "en", "en-us", "english")
        self._reads_figures = any(figure in tokenizer.get_vocab() for figure in "0123456789")

    @property
    def info(self) -> ModelInfo:
        """See `StepModel`."""
        return self._info

    @property
    def step_range(self) -> StepRange:
        """A few sentences a step: their sound is given out when all of them are done."""
        return StepRange(min_units=64, initial_units=512, max_units=4096)

    def warm_up(self) -> None:
        """One short sentence."""
        torch.set_num_threads(self._num_threads)  # each thread has its own setting until it is told
        self._synthesize([(torch.ones(1, 8, dtype=torch.long), 0, 0, 1.0)])

    def check(self, wanted: SpeechInput) -> None:
        """Refuses unknown speakers and blends."""
        if len(self._voices.resolve(wanted.voice)) > 1:
            raise InvalidRequest("voice: the speakers of this model can't be blended. Name one.", param="voice")

    def tokens_of(self, sentence: str, wanted: SpeechInput) -> Sequence[Ids]:
        """Ids of the letters, in parts.

        Raises:
            InvalidRequest: The model cannot read figures, and nothing here can spell them out in its language.
        """
        if self._is_english:
            sentence = spell_out(sentence)
        elif not self._reads_figures and any(map(str.isdecimal, sentence)):
            raise InvalidRequest(
                f"input has figures, which this model of the language {self._tokenizer.language!r} cannot read. "
                "Write numbers as words.",
                param="input",
            )
        parts = (part for part in split_at(sentence, MAX_PART_CHARACTERS) if self._says_something(part))
        return [self._tokenizer(part, return_tensors="np")["input_ids"][0].astype("int64") for part in parts]

    def _says_something(self, text: str) -> bool:
        prepared: str = self._tokenizer.prepare_for_tokenization(text)[0]
        return any(map(str.isalnum, prepared))

    def step(self, batch: Sequence[Granted[SpeechSequence]]) -> Sequence[Outcome[SpeechOutput]]:
        """Synthesises all sentences of the batch; each is done."""
        sequences = [granted.sequence for granted in batch]
        rows = [
            (
                torch.as_tensor(sequence.ids)[None],
                self._voices.names.index(self._voices.resolve(sequence.wanted.voice)[0]),
                sequence.seed,
                sequence.wanted.speed,
            )
            for sequence in sequences
        ]
        return [self.spoken(sequence, sound) for sequence, sound in zip(sequences, self._synthesize(rows), strict=True)]

    @torch.inference_mode()
    def _synthesize(self, rows: Sequence[tuple[Tensor, int, int, float]]) -> list[Samples]:
        latents = [self._prior(index, *row) for index, row in enumerate(rows)]
        sounds: dict[int, Samples] = {}
        for group in _groups(latents, self._max_batch_sentences):
            for one, spectrogram in zip(group, self._flow(group), strict=True):
                waveform = self._network.decoder(spectrogram, one.speaker)
                sounds[one.index] = waveform.reshape(-1).float().cpu().numpy()
        return [sounds[index] for index in range(len(rows))]

    def _prior(self, index: int, ids: Tensor, speaker: int, seed: int, speed: float) -> _Latents:
        """The sentence in frames, with its noise; numbers are drawn in the order in which transformers draws them."""
        network = self._network
        device = network.device
        embedding = None
        if network.config.num_speakers > 1:
            embedding = network.embed_speaker(torch.tensor([speaker], device=device)).unsqueeze(-1)
        with _RANDOM.fork_rng(devices=[device] if device.type == "cuda" else []):
            _RANDOM.manual_seed(seed)
            drawn = torch.zeros(0)
            if network.config.use_stochastic_duration_prediction:
                drawn = torch.randn(1, 2, ids.shape[1])  # on the CPU, as transformers does
            stats = self._text(ids.to(device), drawn.to(device, network.dtype), embedding)
            rate = network.speaking_rate * speed
            durations = torch.ceil(torch.exp(stats.log_durations) / rate)[0, 0].long()
            if int(durations.sum()) == 0:
                durations[0] = 1
            # [1, frames, channels] behind a transposed view: the layout decides in which order noise is drawn
            means = stats.means.repeat_interleave(durations, dim=1).transpose(1, 2)
            log_variances = stats.log_variances.repeat_interleave(durations, dim=1).transpose(1, 2)
            noise = torch.randn_like(means)
        return _Latents(index, means + noise * torch.exp(log_variances) * network.noise_scale, embedding)

    def _flow(self, group: Sequence[_Latents]) -> Iterator[Tensor]:
        """Each sentence of a padded batch behind the flow, [1, channels, frames], without its padding."""
        longest = max(one.num_frames for one in group)
        padded = torch.cat([nn.functional.pad(one.prior, (0, longest - one.num_frames)) for one in group])
        lengths = torch.tensor([one.num_frames for one in group], device=padded.device)
        mask = (torch.arange(longest, device=padded.device) < lengths[:, None]).unsqueeze(1).to(padded.dtype)
        speakers = [one.speaker for one in group if one.speaker is not None]
        flowed = self._network.flow(padded, mask, torch.cat(speakers) if speakers else None, reverse=True) * mask
        for row, one in enumerate(group):
            yield flowed[row : row + 1, :, : one.num_frames]


def _groups(latents: Sequence[_Latents], max_sentences: int) -> Iterator[list[_Latents]]:
    """Sentences of near-equal length together, so that little is padded."""
    group: list[_Latents] = []
    for one in sorted(latents, key=lambda latent: latent.num_frames):
        if group and (len(group) == max_sentences or one.num_frames > group[0].num_frames * _MAX_WASTE):
            yield group
            group = []
        group.append(one)
    if group:
        yield group
