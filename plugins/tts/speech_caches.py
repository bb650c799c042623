"""Keys and values of all sentences that are being spoken, in slots beside each other: one attention a layer serves them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_FRAMES = 64  # of new caches


@dataclass(frozen=True, slots=True)
class Size:
    """What a step looks at: all slots up to a number, and as many frames in each."""

    slots: int
    frames: int


@dataclass(frozen=True, slots=True)
class Speaking:
    """The sentences of one step.

    Attributes:
        slots: [rows].
        lengths: [rows], frames before this one.
        size: Of the part of the caches that holds them.
        is_all: Whether the rows are all slots of that part, in their order.
        apart: The slots again, known to the host, where they are so few that each is attended to by itself; else none.
        unseen: [slots, 1, 1, frames], minus infinity but where a sentence has spoken so far; others see their first frame,
            whatever it is.
    """

    slots: Tensor
    lengths: Tensor
    size: Size
    is_all: bool
    apart: tuple[int, ...]
    unseen: Tensor


class SpeechCaches:
    """Owner: the device thread.

    Args:
        num_layers: Of the decoder.
        num_heads: Of its attention.
        dim: Channels of a head.
        like: Of their type and place.

    Attributes:
        is_full: Whether all room that is ever needed was taken, so that nothing moves.
    """

    def __init__(self, num_layers: int, num_heads: int, dim: int, like: Tensor) -> None:
        # Of each layer: [keys and values, slots, heads, frames or tokens, channels of a head]
        self._spoken = [like.new_zeros(2, 0, num_heads, _FRAMES, dim) for _ in range(num_layers)]
        self._texts = [like.new_zeros(2, 0, num_heads, 0, dim) for _ in range(num_layers)]
        self._unread = like.new_zeros(0, 1, 1, 0)  # minus infinity where a text has no token
        self._free: list[int] = []
        self.is_full = False

    @property
    def num_frames(self) -> int:
        """For as many there is room in each slot."""
        return self._spoken[-1].shape[3]

    @property
    def num_slots(self) -> int:
        """Taken or free."""
        return len(self._unread)

    @property
    def num_bytes(self) -> int:
        """What they take."""
        return sum(tensor.nbytes for tensor in (*self._spoken, *self._texts, self._unread))

    def fill_up(self, num_slots: int, num_frames: int, num_tokens: int) -> None:
        """Takes all room that is ever needed. Nothing moves from here on: recorded steps know the addresses."""
        self._widen(_padded(num_tokens))
        self._lengthen(_padded(num_frames))
        self._add_slots(num_slots - self.num_slots)
        self.is_full = True

    def take(self, text: Tensor) -> int:
        """A slot for a sentence, the lowest that is free.

        Args:
            text: [layers, 2, heads, tokens, channels of a head], keys and values of what it reads.
        """
        num_tokens = text.shape[3]
        if num_tokens > self._unread.shape[-1]:
            self._widen(_padded(num_tokens))
        if not self._free:
            self._add_slots(max(4, self.num_slots))
        slot = min(self._free)
        self._free.remove(slot)
        # What is not seen has the weight 0, but 0 times what is no number is no number: nothing of the one before stays.
        for spoken, read, new in zip(self._spoken, self._texts, text, strict=True):
            spoken[:, slot] = 0.0
            read[:, slot] = 0.0
            read[:, slot, :, :num_tokens] = new
        self._unread[slot] = -torch.inf
        self._unread[slot, ..., :num_tokens] = 0.0
        return slot

    def give_back(self, slot: int) -> None:
        """The sentence has ended."""
        self._free.append(slot)

    def make_room(self, num_frames: int, most: int) -> None:
        """For at least so many frames in each slot, and as many as there were, so that it is seldom done; not for more than
        are ever needed.
        """
        if num_frames > self.num_frames:
            self._lengthen(max(num_frames, min(self.num_frames + num_frames, most)))

    def speaking(self, slots: Tensor, lengths: Tensor, size: Size, rows: Sequence[int] | None) -> Speaking:
        """The sentences of a step; see there. The rows are the slots again, known to the host; None for all of the size."""
        far = lengths
        apart: tuple[int, ...] = ()
        if rows is not None:
            far = lengths.new_zeros(size.slots).index_copy(0, slots, lengths)
            apart = tuple(rows) if 2 * len(rows) <= size.slots else ()
        seen = torch.arange(size.frames, device=lengths.device) <= far[:, None]
        unseen = torch.zeros(seen.shape, dtype=self._unread.dtype, device=lengths.device).masked_fill(~seen, -torch.inf)
        return Speaking(slots, lengths, size, rows is None, apart, unseen[:, None, None])

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
        part = slice(now.size.slots), slice(None), slice(now.size.frames)
        return _attention(query, keys[part], values[part], now.unseen, now)

    def attend_text(self, layer: int, query: Tensor, now: Speaking) -> Tensor:
        """Attention of each sentence's next frame to its text."""
        unread = self._unread[: now.size.slots]
        keys, values = self._texts[layer][:, : now.size.slots, :, : unread.shape[-1]]
        return _attention(query, keys, values, unread, now)

    def _add_slots(self, count: int) -> None:
        self._check_moves()
        first = self.num_slots
        for layers in (self._spoken, self._texts):
            _grow_each(layers, 1, first + count)
        unread = self._unread.new_full((count, 1, 1, self._unread.shape[-1]), -torch.inf)
        unread[..., :1] = 0.0  # something must be seen
        self._unread = torch.cat((self._unread, unread))
        self._free += range(first, first + count)

    def _lengthen(self, num_frames: int) -> None:
        self._check_moves()
        _grow_each(self._spoken, 3, num_frames)

    def _widen(self, num_tokens: int) -> None:
        self._check_moves()
        _grow_each(self._texts, 3, num_tokens)
        self._unread = F.pad(self._unread, (0, num_tokens - self._unread.shape[-1]), value=-torch.inf)

    def _check_moves(self) -> None:
        assert not self.is_full, "the caches were filled up: recorded steps would read freed memory"


def _grow_each(layers: list[Tensor], dim: int, size: int) -> None:
    """One after the other, so that never more than one layer is there twice. Where memory ends on the way it may be repeated,
    also with a smaller size: layers that are larger stay so.
    """
    for layer, old in enumerate(layers):
        shape = list(old.shape)
        shape[dim] = size - shape[dim]
        if shape[dim] > 0:
            layers[layer] = torch.cat((old, old.new_zeros(shape)), dim)


def _padded(count: int) -> int:
    """To what the kernels of attention like."""
    return -(-count // 16) * 16


def _attention(query: Tensor, keys: Tensor, values: Tensor, unseen: Tensor, now: Speaking) -> Tensor:
    """[rows, heads, channels of a head] of as much."""
    if now.apart:  # where they lie: what copies them together takes longer than attention to all slots
        places = [slice(slot, slot + 1) for slot in now.apart]
        each = zip(query[:, None], places, strict=True)
        return torch.cat([_attended(one, keys[place], values[place], unseen[place]) for one, place in each])
    if now.is_all:
        return _attended(query, keys, values, unseen)
    query = query.new_zeros(now.size.slots, *query.shape[1:]).index_copy(0, now.slots, query)
    return _attended(query, keys, values, unseen).index_select(0, now.slots)


def _attended(query: Tensor, keys: Tensor, values: Tensor, unseen: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query[:, :, None], keys, values, attn_mask=unseen, scale=1.0)[:, :, 0]
