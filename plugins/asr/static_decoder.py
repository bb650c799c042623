"""Whisper's decoder with caches at fixed places, a token of all texts a step: so a step is one replay of a CUDA graph.

A step of the stock decoder starts some eight hundred kernels from Python, which takes far longer than the GPU needs for them.
The texts of one window (its beams) share what is heard: their queries attend to its keys together, which are read once. Their
own keys lie side by side, and a table says in whose place the keys of each of a text's tokens are: so no cache is copied when
beams part.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sixfold.core.runtime.cuda_graphs import Capture
from sixfold.plugins.asr.decoded import Decoded, answers
from sixfold.plugins.asr.decoder_memory import DecoderSize
from sixfold.plugins.asr.late_flag import LateFlag
from sixfold.plugins.asr.token_search import Search, Texts, TokenRules, extend

_log = logging.getLogger(__name__)

_FIRST_KEYS = 64  # a step looks at a power of 2 times as many places, so that short texts do not pay for long ones


@dataclass(frozen=True, slots=True)
class _Places:
    """What the steps of so many windows and beams read and write.

    Attributes:
        texts: See there.
        own: [layers, 2, windows, heads, length, beams, dim], keys and values of the texts.
        heard: [layers, 2, windows, heads, encoder's places, dim], of what is heard.
        slots: [windows, beams, 1], the number of each beam.
        logits: [windows, beams, vocabulary], what the last step found.
    """

    texts: Texts
    own: Tensor
    heard: Tensor
    slots: Tensor
    logits: Tensor


class StaticDecoder:
    """Used by the device thread alone.

    Args:
        model: A Whisper of transformers in evaluation mode, on its device.
        rules: Which tokens may follow.
        no_speech: Id of the token that says so; None for a model without.
        max_beams: Most texts of a window.
        capture: Makes a step repeatable; None computes every step anew, with no more places than are needed.
    """

    def __init__(
        self, model: Any, rules: TokenRules, *, no_speech: int | None, max_beams: int, capture: Capture | None
    ) -> None:
        self._decoder = model.model.decoder
        self._head = model.proj_out
        self._rules = rules
        self._no_speech = no_speech
        self._capture = capture
        weight: Tensor = self._decoder.embed_positions.weight
        self._device, self._dtype = weight.device, weight.dtype
        config = model.config
        self._num_heads: int = config.decoder_attention_heads
        self._vocabulary: int = self._head.out_features
        self._size = DecoderSize(
            layers=config.decoder_layers,
            width=config.d_model,
            heard=config.max_source_positions,
            length=config.max_target_positions,
            itemsize=weight.itemsize,
            total_bytes=_total_bytes(self._device),
        )
        self.max_windows = self._size.max_windows(max_beams)
        self._projections = [_projection(layer.self_attn) for layer in self._decoder.layers]
        self._rooms: dict[str, Tensor] = {}
        self._max_beams = max_beams
        self._places: dict[tuple[int, int], _Places] = {}
        self._steps: dict[tuple[int, int, int], Callable[[], None]] = {}
        self._extensions: dict[tuple[int, int, Search], Callable[[], None]] = {}

    def decode(
        self,
        hidden: Tensor,
        prompts: Sequence[Sequence[int]],
        *,
        start: int,
        limit: int,
        search: Search,
        beams: int,
        temperature: float,
        never: Sequence[int],
    ) -> list[list[Decoded]]:
        """Hears windows, at most `max_windows`.

        Args:
            hidden: [windows, encoder's places, width].
            prompts: Equally long.
            start: Place of the start token in each.
            limit: Length of prompt and text at which a text is cut.
            search: How tokens are chosen.
            beams: Texts of a window.
            temperature: Of drawing.
            never: Tokens that never come.

        Returns:
            For each window its texts: all that were drawn, or the best.
        """
        num_windows, end = len(hidden), self._rules.end
        places = self._prepared(num_windows, beams)
        texts = places.texts
        go_on = self._extension(places, search)
        texts.never.fill_(False)
        texts.never[list(never)] = True
        texts.begin(prompts, first=start, limit=limit, end=end, temperature=temperature, one_leads=search == "beams")
        self._hear(hidden, places)
        if start:
            self._read([prompt[:start] for prompt in prompts], places)
        silence, done = [0.0] * num_windows, LateFlag(self._device)
        num_prompt = len(prompts[0])
        for place in range(start, limit - 1):
            self._step(places, place + 1)()
            if place == start:
                silence = self._silence(places)[:num_windows]
            if place < num_prompt - 1:
                texts.at.add_(1)
                continue
            go_on()
            if done.was_set(texts.done):
                break
        return answers(texts, silence, search, num_prompt=num_prompt, limit=limit, end=end)

    def record(self, search: Search, beams: int) -> None:
        """Records what hearing will need, so that no request waits for it; nothing where nothing is recorded."""
        windows = 0 if self._capture is None else self.max_windows
        while windows:  # the largest first: the memory of the others is then part of its
            places = self._prepared(windows, beams)
            self._extension(places, search)
            for num_keys in range(self._size.length, 0, -_FIRST_KEYS):
                self._step(places, num_keys)
            windows //= 2

    def _prepared(self, num_windows: int, beams: int) -> _Places:
        """Places for at least so many windows, with nothing in them that others left there: what is not seen has the weight
        0, but 0 times what is no number is no number.
        """
        windows = num_windows if self._capture is None else 1 << (num_windows - 1).bit_length()
        key = (windows, beams)
        found = self._places.get(key)
        if found is None:
            found = self._make(windows, beams)
            if self._capture is not None:
                self._places[key] = found
        found.own.zero_()  # also where the shape is new: all shapes lie in the same memory
        return found

    def _make(self, windows: int, beams: int) -> _Places:
        size, heads = self._size, self._num_heads
        dim = size.width // heads
        own = (size.layers, 2, windows, heads, size.length, beams, dim)
        heard = (size.layers, 2, windows, heads, size.heard, dim)
        return _Places(
            texts=Texts.make(windows, beams, size.length, vocabulary=self._vocabulary, device=self._device),
            own=self._room("own", own, size.length * self._max_beams),
            heard=self._room("heard", heard, size.heard),
            slots=torch.arange(beams, device=self._device)[:, None].expand(windows, beams, 1).contiguous(),
            logits=torch.zeros(windows, beams, self._vocabulary, dtype=self._dtype, device=self._device),
        )

    def _room(self, name: str, shape: tuple[int, ...], places_a_window: int) -> Tensor:
        """Memory of the shape. With graphs all shapes lie in the same memory, which is taken once: one is in use at a time."""
        count = torch.Size(shape).numel()
        if self._capture is None:
            return torch.zeros(shape, dtype=self._dtype, device=self._device)
        if name not in self._rooms:
            most = 2 * self._size.layers * self._size.width * self.max_windows * places_a_window
            self._rooms[name] = torch.zeros(most, dtype=self._dtype, device=self._device)
        return self._rooms[name][:count].view(shape)

    def _step(self, places: _Places, num_keys: int) -> Callable[[], None]:
        """Computes the token at ``texts.at``; may be called twice."""
        seen = min(_FIRST_KEYS << max(0, (num_keys - 1) // _FIRST_KEYS).bit_length(), self._size.length)
        if self._capture is None:
            return lambda: self._compute(places, seen)
        windows, beams = places.logits.shape[:2]
        key = (windows, beams, seen)
        if key not in self._steps:
            self._steps[key] = self._recorded(lambda: self._compute(places, seen))
        return self._steps[key]

    def _extension(self, places: _Places, search: Search) -> Callable[[], None]:
        """Takes the texts one token further. Recording it spoils them: ask before they begin."""
        windows, beams = places.logits.shape[:2]
        if self._capture is None:
            return lambda: extend(places.texts, places.logits, self._rules, search)
        key = (windows, beams, search)
        if key not in self._extensions:
            texts = places.texts
            for value in (texts.at, texts.num_prompt, texts.limit):
                value.fill_(1)
            self._extensions[key] = self._recorded(lambda: extend(texts, places.logits, self._rules, search))
        return self._extensions[key]

    def _recorded(self, call: Callable[[], None]) -> Callable[[], None]:
        """A replay of the call; the call itself if it can't be recorded."""
        assert self._capture is not None
        try:
            return self._capture(call)
        except RuntimeError as error:
            _log.warning("A step of the decoder is not recorded as a CUDA graph, so it takes longer: %s", error)
            return call

    def _hear(self, hidden: Tensor, places: _Places) -> None:
        """Keys and values of what is heard, for all layers."""
        for layer, (keys, values) in zip(self._decoder.layers, places.heard, strict=True):
            attention = layer.encoder_attn
            keys[: len(hidden)].copy_(self._heads(attention.k_proj(hidden)))
            values[: len(hidden)].copy_(self._heads(attention.v_proj(hidden)))

    def _read(self, tokens: Sequence[Sequence[int]], places: _Places) -> None:
        """Takes the beginning of the prompts into the first beams' places, in one pass."""
        ids = torch.tensor([list(each) for each in tokens]).to(self._device)
        num_windows, length = ids.shape
        hidden = self._decoder.embed_tokens(ids) + self._decoder.embed_positions.weight[:length]
        bias = torch.full((length, length), -torch.inf, dtype=self._dtype, device=self._device).triu(1)

        def attend(index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = places.own[index]
            keys[:num_windows, :, :length, 0], values[:num_windows, :, :length, 0] = key, value
            return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)

        self._through(hidden, places.heard[:, :, :num_windows], attend)

    def _compute(self, places: _Places, num_keys: int) -> None:
        texts = places.texts
        tokens = texts.ids.index_select(2, texts.at)[..., 0]
        hidden = self._decoder.embed_tokens(tokens) + self._decoder.embed_positions.weight.index_select(0, texts.at)
        texts.ancestors.index_copy_(2, texts.at, places.slots)
        windows, beams = tokens.shape
        # [windows, text, place, beam]: the keys of all beams are looked at, those of a text's own past are seen.
        seen = texts.ancestors[:, :, :num_keys, None] == places.slots[0, :, 0]
        bias = torch.zeros(seen.shape, dtype=self._dtype, device=self._device).masked_fill(~seen, -torch.inf)
        bias = bias.view(windows, 1, beams, num_keys * beams)

        def attend(index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = places.own[index]
            keys.index_copy_(2, texts.at, key.unsqueeze(2))
            values.index_copy_(2, texts.at, value.unsqueeze(2))
            keys, values = (each[:, :, :num_keys].flatten(2, 3) for each in (keys, values))
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=bias)

        places.logits.copy_(self._head(self._through(hidden, places.heard, attend)))

    def _through(
        self, hidden: Tensor, heard: Tensor, attend: Callable[[int, Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """[windows, n, width] through all layers.

        Args:
            hidden: Of n texts or places of a window.
            heard: Keys and values of what is heard.
            attend: By layer: queries, keys and values, [windows, heads, n, dim], to what they see of the texts.
        """
        for index, layer in enumerate(self._decoder.layers):
            own, other = layer.self_attn, layer.encoder_attn
            parts = [self._heads(part) for part in self._projections[index](layer.self_attn_layer_norm(hidden))]
            hidden = hidden + own.out_proj(self._joined(attend(index, *parts)))
            query = self._heads(other.q_proj(layer.encoder_attn_layer_norm(hidden)))
            found = F.scaled_dot_product_attention(query, heard[index, 0], heard[index, 1])
            hidden = hidden + other.out_proj(self._joined(found))
            inner = layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden)))
            hidden = hidden + layer.fc2(inner)
        normed: Tensor = self._decoder.layer_norm(hidden)
        return normed

    def _heads(self, rows: Tensor) -> Tensor:
        """[windows, n, width] as [windows, heads, n, dim]."""
        return rows.view(*rows.shape[:2], self._num_heads, -1).transpose(1, 2)

    def _joined(self, rows: Tensor) -> Tensor:
        return rows.transpose(1, 2).flatten(2)

    def _silence(self, places: _Places) -> list[float]:
        if self._no_speech is None:
            return [0.0] * len(places.logits)
        found = places.logits[:, 0].float().softmax(dim=-1)[:, self._no_speech]
        return [float(value) for value in found.cpu().numpy()]


def _total_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return 1 << 62  # nothing is kept there
    cuda: Any = torch.cuda  # ships no types
    return int(cuda.get_device_properties(device).total_memory)


def _projection(attention: Any) -> Callable[[Tensor], Sequence[Tensor]]:
    """Queries, keys and values; one product where the layers are stock, whose weights then are parts of the one's."""
    linears: list[nn.Linear] = [attention.q_proj, attention.k_proj, attention.v_proj]
    if any(type(linear) is not nn.Linear for linear in linears):
        return lambda rows: [linear(rows) for linear in linears]
    weight = torch.cat([linear.weight.detach() for linear in linears])
    size = linears[0].out_features
    given = [cast("Tensor | None", linear.bias) for linear in linears]
    biases = [weight.new_zeros(size) if bias is None else bias.detach() for bias in given]
    for linear, part in zip(linears, weight.chunk(3), strict=True):
        linear.weight = nn.Parameter(part, requires_grad=False)
    bias = torch.cat(biases)
    return lambda rows: F.linear(rows, weight, bias).chunk(3, dim=-1)
