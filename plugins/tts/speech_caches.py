"""Keys and values of all sentences that are being spoken, in slots beside each other: one attention a layer serves them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_FRAMES = 64  # caches grow by as many, and steps look at multiples of a quarter


@dataclass(frozen=True, slots=True)
class Speaking:
    """The sentences of one step.

    Attributes:
        slots: [rows].
        lengths: [rows], frames before this one.
        num_slots: That are looked at: all up to the highest of these.
        num_frames: That are looked at in each.
        seen: [num_slots, 1, 1, num_frames], whether a sentence has spoken so far; others see their first frame, whatever it is.
    """

    slots: Tensor
    lengths: Tensor
    num_slots: int
    num_frames: int
    seen: Tensor


class SpeechCaches:
    """Owner: the device thread.

    Args:
        num_layers: Of the decoder.
        num_heads: Of its attention.
        dim: Channels of a head.
        like: Of their type and place.
    """

    def __init__(self, num_layers: int, num_heads: int, dim: int, like: Tensor) -> None:
        # [layers, keys and values, slots, heads, frames or tokens, channels of a head]
        self._spoken = like.new_zeros(num_layers, 2, 0, num_heads, _FRAMES, dim)
        self._texts = like.new_zeros(num_layers, 2, 0, num_heads, 0, dim)
        self._reads = torch.zeros(0, 1, 1, 0, dtype=torch.bool, device=like.device)
        self._free: list[int] = []

    def take(self, text: Tensor) -> int:
        """A slot for a sentence, the lowest that is free.

        Args:
            text: [layers, 2, heads, tokens, channels of a head], keys and values of what it reads.
        """
        num_tokens = text.shape[3]
        if num_tokens > self._texts.shape[4]:
            self._widen(-(-num_tokens // 16) * 16)
        if not self._free:
            self._add_slots(max(4, self._spoken.shape[2]))
        slot = min(self._free)
        self._free.remove(slot)
        # What is not seen has the weight 0, but 0 times what is no number is no number: nothing of the one before stays.
        self._spoken[:, :, slot] = 0.0
        self._texts[:, :, slot] = 0.0
        self._texts[:, :, slot, :, :num_tokens] = text
        self._reads[slot] = torch.arange(self._reads.shape[-1], device=self._reads.device) < num_tokens
        return slot

    def give_back(self, slot: int) -> None:
        """The sentence has ended."""
        self._free.append(slot)

    def speaking(self, slots: Sequence[int], lengths: Sequence[int]) -> Speaking:
        """The sentences of a step.

        Args:
            slots: Theirs.
            lengths: Frames that each has spoken.
        """
        needed = max(lengths) + 1
        if needed > self._spoken.shape[4]:
            more = torch.zeros_like(self._spoken[..., :1, :]).expand(*self._spoken.shape[:4], needed, -1)
            self._spoken = torch.cat((self._spoken, more), dim=4)
        device, num_slots = self._spoken.device, max(slots) + 1
        places, spoken = torch.tensor([list(slots), list(lengths)]).to(device)
        num_frames = min(-(-needed // (_FRAMES // 4)) * (_FRAMES // 4), self._spoken.shape[4])
        far = torch.zeros(num_slots, dtype=torch.long, device=device).index_copy(0, places, spoken)
        seen = (torch.arange(num_frames, device=device) <= far[:, None])[:, None, None]
        return Speaking(places, spoken, num_slots, num_frames, seen)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, now: Speaking) -> Tensor:
        """Attention of each sentence's next frame to its frames so far and itself.

        Args:
            layer: Its number.
            query: [rows, heads, channels of a head], scaled.
            key: Likewise; written to its place, where the same frame again changes nothing.
            value: Likewise.
            now: The sentences.

        Returns:
            As the query.
        """
        keys, values = self._spoken[layer]
        keys[now.slots, :, now.lengths], values[now.slots, :, now.lengths] = key, value
        part = slice(now.num_slots), slice(None), slice(now.num_frames)
        return _attention(query, keys[part], values[part], now.seen, now.slots)

    def attend_text(self, layer: int, query: Tensor, now: Speaking) -> Tensor:
        """Attention of each sentence's next frame to its text."""
        keys, values = self._texts[layer, :, : now.num_slots]
        return _attention(query, keys, values, self._reads[: now.num_slots], now.slots)

    def _add_slots(self, count: int) -> None:
        first = self._spoken.shape[2]
        self._spoken, self._texts = (
            torch.cat((old, old.new_zeros(*old.shape[:2], count, *old.shape[3:])), dim=2)
            for old in (self._spoken, self._texts)
        )
        reads = self._reads.new_zeros(count, 1, 1, self._reads.shape[-1])
        reads[..., :1] = True
        self._reads = torch.cat((self._reads, reads))
        self._free += range(first, first + count)

    def _widen(self, num_tokens: int) -> None:
        more = num_tokens - self._texts.shape[4]
        self._texts = F.pad(self._texts, (0, 0, 0, more))
        self._reads = F.pad(self._reads, (0, more))


def _attention(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor, slots: Tensor) -> Tensor:
    """[rows, heads, channels of a head] of as much."""
    all_queries = query.new_zeros(len(keys), *query.shape[1:]).index_copy(0, slots, query)
    found = F.scaled_dot_product_attention(all_queries[:, :, None], keys, values, attn_mask=seen, scale=1.0)
    return found[:, :, 0].index_select(0, slots)
