"""SpeechT5's decoder, a frame at a time for sentences of any age: transformers' own layers over all rows at once, and attention
of all of them to their own caches.

Its input layer drops half of its values also when it speaks (Tacotron 2, section 2.2). Each sentence draws what it drops
from its own generator: so it sounds the same whoever shares its steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sixfold.plugins.tts.speech_caches import Speaking, SpeechCaches

_DRAWN_FRAMES = 32


@dataclass(slots=True)
class SpokenRow:
    """A sentence that is being spoken. Owner: the device thread.

    Attributes:
        slot: Of its caches.
        speaker: [1, channels], of the voice.
        generator: Draws what the input layer drops; on the CPU, so that a seed sounds the same on all GPUs.
        max_frames: After which the sentence ends in any case.
        frames: What was spoken, [reduction, mel bins] each.
        drawn: [frames, layers of the input, units], drawn ahead; None where it is drawn as transformers draws it.
        drops: Drawn for the next frame and kept until it is spoken: a step that is repeated must not draw again.
    """

    slot: int
    speaker: Tensor
    generator: torch.Generator
    max_frames: int
    frames: list[Tensor] = field(default_factory=list[Tensor])
    drawn: Tensor | None = None
    drops: Sequence[Tensor] | None = None


@dataclass(frozen=True, slots=True)
class NextFrame:
    """What a step gives a row: [reduction, mel bins], and whether the sentence ends with it."""

    frame: Tensor
    is_last: bool


class SpeechT5Decoder:
    """Speaks rows frame by frame.

    Args:
        network: transformers' ``SpeechT5ForTextToSpeech`` in evaluation mode.
    """

    THRESHOLD = 0.5
    MAX_RATIO = 20.0
    """Spectrogram frames a token at most; both are the defaults of ``generate_speech``."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._config = network.config
        self._prenet = network.speecht5.decoder.prenet
        self._layers = network.speecht5.decoder.wrapped_decoder.layers
        attention = self._layers[0].self_attn
        weight: Tensor = attention.q_proj.weight
        self._caches = SpeechCaches(len(self._layers), attention.num_heads, attention.head_dim, weight.detach())
        # What transformers draws for a sentence grows with the square of its frames. That is done where it can be compared,
        # on a CPU: on a GPU transformers draws from the GPU's generator, and other sentences would wait for these numbers.
        self._draws_ahead = weight.device.type != "cpu"

    def begin(self, ids: Tensor, speaker: Tensor, seed: int) -> SpokenRow:
        """Reads a sentence; `end` it.

        Args:
            ids: [1, tokens].
            speaker: [1, channels].
            seed: Of all that is random.
        """
        text = self._network.speecht5.encoder(input_values=ids, attention_mask=torch.ones_like(ids), return_dict=True)
        hidden = text.last_hidden_state[0]
        others = [layer.encoder_attn for layer in self._layers]
        read = [
            torch.stack([_heads(other, product(hidden)) for product in (other.k_proj, other.v_proj)])
            for other in others
        ]
        return SpokenRow(
            slot=self._caches.take(torch.stack(read).transpose(2, 3)),
            speaker=torch.nn.functional.normalize(speaker),
            generator=torch.Generator().manual_seed(seed),
            max_frames=int(ids.shape[1] * self.MAX_RATIO / self._config.reduction_factor),
        )

    def end(self, row: SpokenRow) -> None:
        """Gives its caches back."""
        self._caches.give_back(row.slot)

    def step(self, rows: Sequence[SpokenRow]) -> list[NextFrame]:
        """The next frame of each row. Nothing has changed until `SpokenRow.frames` grows: a step may be repeated."""
        now = self._caches.speaking([row.slot for row in rows], [len(row.frames) for row in rows])
        hidden = self._input(rows, now)
        for index, layer in enumerate(self._layers):
            hidden = self._attend(index, hidden, now)
            hidden = hidden + layer.feed_forward(hidden)
            hidden = layer.final_layer_norm(hidden)
        postnet, config = self._network.speech_decoder_postnet, self._config
        frames = postnet.feat_out(hidden).view(len(rows), config.reduction_factor, config.num_mel_bins)
        ends: Any = torch.sigmoid(postnet.prob_out(hidden)).sum(dim=-1) >= self.THRESHOLD
        return [
            NextFrame(frame, is_last=bool(end) or len(row.frames) + 1 >= row.max_frames)
            for row, frame, end in zip(rows, frames, ends.tolist(), strict=True)
        ]

    def spectrogram(self, row: SpokenRow) -> Tensor:
        """The whole sentence, [frames, mel bins]."""
        spoken: Tensor = self._network.speech_decoder_postnet.postnet(torch.cat(row.frames)[None])[0]
        return spoken

    def _input(self, rows: Sequence[SpokenRow], now: Speaking) -> Tensor:
        """What the frame before each row's next one becomes: [rows, channels]."""
        prenet = self._prenet
        first = rows[0].speaker.new_zeros(self._config.num_mel_bins)
        hidden = torch.stack([row.frames[-1][-1] if row.frames else first for row in rows])
        drops = [self._drops(row) for row in rows]
        for index, layer in enumerate(prenet.layers):
            kept = torch.stack([drop[index] for drop in drops]).to(hidden.device)
            hidden = torch.nn.functional.relu(layer(hidden))
            hidden = torch.where(kept == 1, hidden, 0) * 1 / (1 - self._config.speech_decoder_prenet_dropout)
        positions = prenet.encode_positions
        hidden = prenet.final_layer(hidden) + positions.alpha * positions.pe[0].index_select(0, now.lengths)
        hidden = torch.cat([hidden, torch.cat([row.speaker for row in rows])], dim=-1)
        return torch.nn.functional.relu(prenet.speaker_embeds_layer(hidden))

    def _drops(self, row: SpokenRow) -> Sequence[Tensor]:
        """For each layer of the prenet what it keeps of the next frame, [units]."""
        if row.drops is None:
            row.drops = self._drawn_ahead(row) if self._draws_ahead else self._drawn_as_alone(row)
        return row.drops

    def _drawn_as_alone(self, row: SpokenRow) -> Sequence[Tensor]:
        """The last line of what transformers draws for all frames so far."""
        config, num_frames = self._config, len(row.frames) + 1
        return [
            torch.empty(num_frames, config.speech_decoder_prenet_units).bernoulli_(
                config.speech_decoder_prenet_dropout, generator=row.generator
            )[-1]
            for _ in self._prenet.layers
        ]

    def _drawn_ahead(self, row: SpokenRow) -> Sequence[Tensor]:
        config, place = self._config, len(row.frames) % _DRAWN_FRAMES
        if row.drawn is None or place == 0:
            shape = (_DRAWN_FRAMES, len(self._prenet.layers), config.speech_decoder_prenet_units)
            drawn = torch.empty(shape).bernoulli_(config.speech_decoder_prenet_dropout, generator=row.generator)
            row.drawn = drawn.to(row.speaker.device)
        return row.drawn[place].unbind()

    def _attend(self, index: int, hidden: Tensor, now: Speaking) -> Tensor:
        """To the frames before, then to the text."""
        layer = self._layers[index]
        own, other = layer.self_attn, layer.encoder_attn
        queries, keys, values = (_heads(own, product(hidden)) for product in (own.q_proj, own.k_proj, own.v_proj))
        heard = self._caches.attend(index, queries * own.scaling, keys, values, now)
        hidden = layer.self_attn_layer_norm(hidden + own.out_proj(heard.flatten(1)))
        queries = _heads(other, other.q_proj(hidden) * other.scaling)
        read = self._caches.attend_text(index, queries, now)
        attended: Tensor = layer.encoder_attn_layer_norm(hidden + other.out_proj(read.flatten(1)))
        return attended


def spoke(row: SpokenRow, frame: Tensor) -> None:
    """Takes a frame into a row: the next step goes on from it."""
    row.frames.append(frame)
    row.drops = None


def _heads(attention: Any, hidden: Tensor) -> Tensor:
    """[rows, heads, channels of a head] of [rows, channels]."""
    return hidden.view(len(hidden), attention.num_heads, attention.head_dim)
