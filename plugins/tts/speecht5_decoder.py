"""SpeechT5's decoder, a frame at a time for sentences of any age: transformers' own layers, their products over all rows at
once, attention over each row's own cache.

Its input layer drops half of its values also when it speaks (Tacotron 2, section 2.2). Each sentence draws what it drops
from its own generator, as many numbers as transformers draws for it alone: so it sounds the same whoever shares its steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_FIRST_FRAMES = 64


@dataclass(slots=True)
class _LayerCache:
    """Of one layer: what it attends to. [heads, length, channels of a head] each."""

    keys: Tensor
    values: Tensor
    text_keys: Tensor
    text_values: Tensor

    def write(self, at: int, key: Tensor, value: Tensor) -> None:
        """Puts a frame in its place, [heads, channels]; the same frame again changes nothing."""
        if at == self.keys.shape[1]:
            self.keys, self.values = _doubled(self.keys), _doubled(self.values)
        self.keys[:, at], self.values[:, at] = key, value


@dataclass(slots=True)
class SpokenRow:
    """A sentence that is being spoken. Owner: the device thread.

    Attributes:
        layers: Their caches.
        speaker: [1, channels], of the voice.
        generator: Draws what the input layer drops; on the CPU, so that a seed sounds the same on every device.
        max_frames: After which the sentence ends in any case.
        frames: What was spoken, [reduction, mel bins] each.
        drops: Drawn for the next frame and kept until it is spoken: a step that is repeated must not draw again.
    """

    layers: list[_LayerCache]
    speaker: Tensor
    generator: torch.Generator
    max_frames: int
    frames: list[Tensor] = field(default_factory=list[Tensor])
    drops: list[Tensor] | None = None


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

    def begin(self, ids: Tensor, speaker: Tensor, seed: int) -> SpokenRow:
        """Reads a sentence.

        Args:
            ids: [1, tokens].
            speaker: [1, channels].
            seed: Of all that is random.
        """
        text = self._network.speecht5.encoder(input_values=ids, attention_mask=torch.ones_like(ids), return_dict=True)
        hidden = text.last_hidden_state
        layers: list[_LayerCache] = []
        for layer in self._layers:
            attention = layer.encoder_attn
            text_keys = _heads(attention, attention.k_proj(hidden)[0])
            text_values = _heads(attention, attention.v_proj(hidden)[0])
            empty = text_keys.new_zeros(text_keys.shape[0], _FIRST_FRAMES, text_keys.shape[2])
            layers.append(_LayerCache(empty, empty.clone(), text_keys, text_values))
        return SpokenRow(
            layers=layers,
            speaker=torch.nn.functional.normalize(speaker),
            generator=torch.Generator().manual_seed(seed),
            max_frames=int(ids.shape[1] * self.MAX_RATIO / self._config.reduction_factor),
        )

    def step(self, rows: Sequence[SpokenRow]) -> list[NextFrame]:
        """The next frame of each row. Nothing has changed until `SpokenRow.frames` grows: a step may be repeated."""
        hidden = self._input(rows)
        for index, layer in enumerate(self._layers):
            caches = [row.layers[index] for row in rows]
            hidden = self._attend(layer, hidden, rows, caches)
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

    def _input(self, rows: Sequence[SpokenRow]) -> Tensor:
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
        hidden = prenet.final_layer(hidden) + positions.alpha * positions.pe[0, [len(row.frames) for row in rows]]
        hidden = torch.cat([hidden, torch.cat([row.speaker for row in rows])], dim=-1)
        return torch.nn.functional.relu(prenet.speaker_embeds_layer(hidden))

    def _drops(self, row: SpokenRow) -> list[Tensor]:
        """For each layer of the prenet the last line of what transformers draws for all frames so far."""
        if row.drops is None:
            config, num_frames = self._config, len(row.frames) + 1
            row.drops = [
                torch.empty(num_frames, config.speech_decoder_prenet_units).bernoulli_(
                    config.speech_decoder_prenet_dropout, generator=row.generator
                )[-1]
                for _ in self._prenet.layers
            ]
        return row.drops

    def _attend(self, layer: Any, hidden: Tensor, rows: Sequence[SpokenRow], caches: Sequence[_LayerCache]) -> Tensor:
        """To the frames before, then to the text."""
        own = layer.self_attn
        queries, keys, values = (_heads(own, product(hidden)) for product in (own.q_proj, own.k_proj, own.v_proj))
        heard: list[Tensor] = []
        for index, (row, cache) in enumerate(zip(rows, caches, strict=True)):
            length = len(row.frames)
            cache.write(length, keys[:, index], values[:, index])
            seen = slice(length + 1)
            heard.append(_attention(queries[:, index] * own.scaling, cache.keys[:, seen], cache.values[:, seen]))
        hidden = layer.self_attn_layer_norm(hidden + own.out_proj(torch.stack(heard)))
        other = layer.encoder_attn
        queries = _heads(other, other.q_proj(hidden) * other.scaling)
        read = [_attention(queries[:, index], cache.text_keys, cache.text_values) for index, cache in enumerate(caches)]
        attended: Tensor = layer.encoder_attn_layer_norm(hidden + other.out_proj(torch.stack(read)))
        return attended


def spoke(row: SpokenRow, frame: Tensor) -> None:
    """Takes a frame into a row: the next step goes on from it."""
    row.frames.append(frame)
    row.drops = None


def _heads(attention: Any, hidden: Tensor) -> Tensor:
    """[heads, rows, channels of a head] of [rows, channels]."""
    return hidden.view(len(hidden), attention.num_heads, attention.head_dim).transpose(0, 1)


def _attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """[channels] of one position: query [heads, channels of a head], keys and values [heads, length, the same]."""
    weights = torch.softmax(query[:, None] @ keys.transpose(1, 2), dim=-1)
    return (weights @ values).reshape(-1)


def _doubled(cache: Tensor) -> Tensor:
    return torch.cat([cache, torch.zeros_like(cache)], dim=1)
