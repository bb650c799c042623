"""SpeechT5's decoder, a frame at a time for sentences of any age: transformers' own layers over all rows at once, and attention
of all of them to their own caches.

A step starts some two hundred kernels for a millisecond's work: on GPUs it is the replay of a CUDA graph, over all slots up to
the highest that is taken; what it makes for the others is written to their next places and never read.

Its input layer drops half of its values also when it speaks (Tacotron 2, section 2.2). Each sentence draws what it drops
from its own generator: so it sounds the same whoever shares its steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sixfold.core.errors import InvalidRequest
from sixfold.core.runtime.cuda_graphs import Capture
from sixfold.plugins.tts.speech_caches import Size, Speaking, SpeechCaches
from sixfold.plugins.tts.speech_slots import DROPS_AHEAD, SpeechSlots

_log = logging.getLogger(__name__)

_LEAST_SLOTS, _LEAST_FRAMES = 4, 64  # of a graph; the others have a power of 2 times as many


@dataclass(slots=True)
class SpokenRow:
    """A sentence that is being spoken. Owner: the device thread.

    Attributes:
        slot: Of its caches.
        generator: Draws what the input layer drops; on the CPU, so that a seed sounds the same on all GPUs.
        max_frames: After which the sentence ends in any case.
        num_frames: That were spoken.
        num_drawn: For which it was drawn what they drop: a step that is repeated must not draw again.
    """

    slot: int
    generator: torch.Generator
    max_frames: int
    num_frames: int = 0
    num_drawn: int = 0

    @property
    def place(self) -> int:
        """Of the next frame."""
        return min(self.num_frames, self.max_frames - 1)


class SpeechT5Decoder:
    """Speaks rows frame by frame.

    Args:
        network: transformers' ``SpeechT5ForTextToSpeech`` in evaluation mode.
        max_rows: Most that are spoken at once.
        max_tokens: Of the longest sentence.
        capture: Makes a step repeatable, so the memory of all caches is taken at once; None computes every step, for its rows
            alone, and caches grow.
    """

    THRESHOLD = 0.5
    MAX_RATIO = 20.0
    """Spectrogram frames a token at most; both are the defaults of ``generate_speech``."""

    def __init__(self, network: Any, *, max_rows: int, max_tokens: int, capture: Capture | None) -> None:
        self._network = network
        self._config = network.config
        self._prenet = network.speecht5.decoder.prenet
        self._layers = network.speecht5.decoder.wrapped_decoder.layers
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._capture = capture
        self._steps: dict[Size, Callable[[], None]] = {}
        self._held: dict[int, SpokenRow] = {}
        config = network.config
        weight: Tensor = self._layers[0].self_attn.q_proj.weight.detach()
        self._caches = self._new_caches()
        self._slots = SpeechSlots(
            max_rows,
            speaker=config.speaker_embedding_dim,
            frame=(config.reduction_factor, config.num_mel_bins),
            drops=(len(self._prenet.layers), config.speech_decoder_prenet_units),
            like=weight,
        )
        # What transformers draws for a sentence grows with the square of its frames. That is done where it can be compared,
        # on a CPU: on a GPU transformers draws from the GPU's generator, and other sentences would wait for these numbers.
        self._draws_ahead = weight.device.type != "cpu"
        if capture is not None:
            self._caches.fill_up(max_rows, self._most_frames(max_tokens), max_tokens)
            self._slots.make_room(self._caches.num_frames)

    def record(self) -> None:
        """Records the steps of all sizes, so that no request waits for it; nothing where nothing is recorded. Before the first
        sentence.
        """
        for slots in reversed(
            _doubled(_LEAST_SLOTS, self._max_rows)
        ):  # the memory of smaller ones is part of the largest's
            for frames in reversed(_doubled(_LEAST_FRAMES, self._caches.num_frames)):
                self._replayed(slots, frames)

    def begin(self, ids: Tensor, speaker: Tensor, seed: int) -> SpokenRow:
        """Reads a sentence; `end` it.

        Args:
            ids: [1, tokens].
            speaker: [1, channels].
            seed: Of all that is random.

        Raises:
            InvalidRequest: It has more tokens than the decoder has places for what is spoken of them.
        """
        assert len(self._held) < self._max_rows
        if ids.shape[1] > self._max_tokens:
            raise InvalidRequest(
                f"input has a part of {ids.shape[1]} tokens; this model speaks at most {self._max_tokens} at once. "
                "Write it in shorter sentences.",
                param="input",
            )
        text = self._network.speecht5.encoder(input_values=ids, attention_mask=None, return_dict=True)
        hidden = text.last_hidden_state[0]
        others = [layer.encoder_attn for layer in self._layers]
        read = [
            torch.stack([_heads(other, product(hidden)) for product in (other.k_proj, other.v_proj)])
            for other in others
        ]
        row = SpokenRow(
            slot=self._caches.take(torch.stack(read).transpose(2, 3)),
            generator=torch.Generator().manual_seed(seed),
            max_frames=self._most_frames(ids.shape[1]),
        )
        self._slots.speakers[row.slot] = F.normalize(speaker)[0]
        self._held[row.slot] = row
        return row

    def end(self, row: SpokenRow) -> None:
        """Gives its caches back; those that grew, and nobody uses any more, to the system: many short sentences and later one
        that is long would else leave many that are as long.
        """
        del self._held[row.slot]
        self._caches.give_back(row.slot)
        if not self._held and not self._caches.is_full:
            self._caches = self._new_caches()
            self._slots.forget_frames()

    def step(self, rows: Sequence[SpokenRow]) -> list[bool]:
        """Computes the next frame of each row; `SpokenRow.num_frames` takes it. Until then the step may be repeated.

        Returns:
            Whether each ends with it.
        """
        for row in rows:
            self._draw(row)
        places = [self._held[slot].place if slot in self._held else 0 for slot in range(max(self._held) + 1)]
        self._slots.lengths[: len(places)].copy_(torch.tensor(places))
        if not self._replayed(len(places), max(places) + 1):
            self._compute_rows(rows)
        ends: list[bool] = self._slots.ends[: len(places)].cpu().numpy().tolist()
        return [ends[row.slot] or row.num_frames + 1 >= row.max_frames for row in rows]

    def spectrogram(self, row: SpokenRow, num_frames: int) -> Tensor:
        """The sentence's first frames, [frames, mel bins]."""
        frames = self._slots.frames[row.slot, :num_frames].flatten(0, 1)
        spoken: Tensor = self._network.speech_decoder_postnet.postnet(frames[None])[0]
        return spoken

    def _new_caches(self) -> SpeechCaches:
        attention = self._layers[0].self_attn
        weight = attention.q_proj.weight.detach()
        return SpeechCaches(len(self._layers), attention.num_heads, attention.head_dim, weight)

    def _most_frames(self, num_tokens: int) -> int:
        return int(num_tokens * self.MAX_RATIO / self._config.reduction_factor)

    def _replayed(self, num_slots: int, num_frames: int) -> bool:
        """Computes the next frame of all slots up to a number by a recorded step; False if it can't be. It may be done twice."""
        if self._capture is None:
            return False
        size = Size(
            _first(num_slots, _doubled(_LEAST_SLOTS, self._max_rows)),
            _first(num_frames, _doubled(_LEAST_FRAMES, self._caches.num_frames)),
        )
        if size not in self._steps:
            try:
                self._steps[size] = self._capture(lambda: self._compute(None, size))
            except RuntimeError as error:
                _log.warning("Frames are not spoken by CUDA graphs, so they take longer: %s", error)
                self._capture = None
                self._steps.clear()
                return False
        self._steps[size]()
        return True

    def _compute_rows(self, rows: Sequence[SpokenRow]) -> None:
        """Computes the next frame of some rows, with no more of the caches than is needed."""
        needed = 1 + max(row.place for row in rows)
        self._caches.make_room(needed, self._most_frames(self._max_tokens))
        self._slots.make_room(self._caches.num_frames)
        slots = [row.slot for row in rows]
        size = Size(max(slots) + 1, min(-(-needed // 16) * 16, self._caches.num_frames))
        self._compute(slots, size)

    def _compute(self, rows: Sequence[int] | None, size: Size) -> None:
        """Writes frames and ends of some slots, of all of the size for None."""
        slots, config, postnet = self._slots, self._config, self._network.speech_decoder_postnet
        places, lengths = slots.everyone[: size.slots], slots.lengths[: size.slots]
        if rows is not None:
            places = torch.tensor(rows, device=lengths.device)
            lengths = lengths.index_select(0, places)
        now = self._caches.speaking(places, lengths, size, rows)
        hidden = self._input(now)
        for index, layer in enumerate(self._layers):
            hidden = self._attend(index, hidden, now)
            hidden = hidden + layer.feed_forward(hidden)
            hidden = layer.final_layer_norm(hidden)
        frames = postnet.feat_out(hidden).view(-1, config.reduction_factor, config.num_mel_bins)
        slots.frames[places, lengths] = frames
        ends = torch.sigmoid(postnet.prob_out(hidden)).sum(dim=-1) >= self.THRESHOLD
        slots.ends.index_copy_(0, places, ends)

    def _input(self, now: Speaking) -> Tensor:
        """What the frame before each row's next one becomes: [rows, channels]."""
        prenet, slots = self._prenet, self._slots
        before = slots.frames[:, :, -1][now.slots, (now.lengths - 1).clamp(min=0)]
        hidden = torch.where(now.lengths[:, None] > 0, before, 0.0)
        kept = slots.kept[now.slots, now.lengths % DROPS_AHEAD]
        for layer, those in zip(prenet.layers, kept.unbind(1), strict=True):
            hidden = torch.where(those, F.relu(layer(hidden)), 0.0)
            hidden = hidden * 1 / (1 - self._config.speech_decoder_prenet_dropout)
        positions = prenet.encode_positions
        hidden = prenet.final_layer(hidden) + positions.alpha * positions.pe[0].index_select(0, now.lengths)
        hidden = torch.cat([hidden, slots.speakers.index_select(0, now.slots)], dim=-1)
        return F.relu(prenet.speaker_embeds_layer(hidden))

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

    def _draw(self, row: SpokenRow) -> None:
        """What the input keeps for the next frame."""
        if row.num_drawn > row.num_frames:
            return
        count, first = (DROPS_AHEAD, 0) if self._draws_ahead else (1, row.num_drawn % DROPS_AHEAD)
        drawn = self._drawn_ahead(row) if self._draws_ahead else self._drawn_as_alone(row)
        self._slots.kept[row.slot, first : first + count].copy_(drawn == 1)
        row.num_drawn += count

    def _drawn_ahead(self, row: SpokenRow) -> Tensor:
        config = self._config
        shape = (DROPS_AHEAD, len(self._prenet.layers), config.speech_decoder_prenet_units)
        return torch.empty(shape).bernoulli_(config.speech_decoder_prenet_dropout, generator=row.generator)

    def _drawn_as_alone(self, row: SpokenRow) -> Tensor:
        """The last line of what transformers draws for all frames so far."""
        config, num_frames = self._config, row.num_frames + 1
        drawn = [
            torch.empty(num_frames, config.speech_decoder_prenet_units).bernoulli_(
                config.speech_decoder_prenet_dropout, generator=row.generator
            )[-1]
            for _ in self._prenet.layers
        ]
        return torch.stack(drawn)[None]


def _doubled(least: int, most: int) -> list[int]:
    """The least number and its doubles, and at last the most."""
    found: list[int] = []
    while least < most:
        found.append(least)
        least *= 2
    return [*found, most]


def _first(needed: int, counts: Sequence[int]) -> int:
    return next(count for count in counts if count >= needed)


def _heads(attention: Any, hidden: Tensor) -> Tensor:
    """[rows, heads, channels of a head] of [rows, channels]."""
    return hidden.view(len(hidden), attention.num_heads, attention.head_dim)
