"""First-block caching inside a mixed batch: each call of each request decides for itself whether its rows skip the rest.

If the first block changed a call's hidden states almost as it did in the call before, the other blocks are skipped for
its rows and what they added last time is added again. The blocks then run for the remaining rows only. A decision is
made over all rows of one call, so it is the one that the call would have made alone.

Source: the method of ParaAttention's First Block Cache, as diffusers' ``FirstBlockCacheConfig`` has it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor

from sixfold.core.rendezvous.streams import rebuilt


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedBlock:
    """One block of a module, and where it keeps what it passes on.

    Attributes:
        module: Its ``forward`` is wrapped.
        read: ``read(name, args, kwargs)`` finds an argument, or None.
        hidden_index: Of the hidden states in a tuple that it returns.
        encoder_index: Of the encoder's hidden states there; None if it returns none.
    """

    module: torch.nn.Module
    read: Callable[[str, Sequence[Any], dict[str, Any]], Any]
    hidden_index: int = 0
    encoder_index: int | None = None

    def unpack(self, output: Any) -> tuple[Tensor, Tensor | None]:
        """(hidden states, encoder's hidden states or None) of a result."""
        if not _is_tuple(output):
            return output, None
        return output[self.hidden_index], None if self.encoder_index is None else output[self.encoder_index]

    def pack(self, hidden: Tensor, encoder: Tensor | None, like: Any) -> Any:
        """A result of the form of ``like``."""
        if not _is_tuple(like):
            return hidden
        parts: list[Any] = [None] * len(like)
        parts[self.hidden_index] = hidden
        if self.encoder_index is not None:
            parts[self.encoder_index] = encoder
        return tuple(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """The rows of one call in a forward.

    Attributes:
        owner: Whose state it is.
        context: Calls of one owner in different contexts have states of their own.
        rows: How many.
        threshold: Relative change of the first block's part below which the rest is skipped; None never skips.
    """

    owner: Hashable
    context: str | None
    rows: int
    threshold: float | None

    @property
    def key(self) -> tuple[Hashable, str | None]:
        """Of its state."""
        return (self.owner, self.context)


@dataclass(slots=True)
class _State:
    """Of one owner."""

    head: Tensor
    tail: Tensor | None = None
    tail_encoder: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        tensors = (self.head, self.tail, self.tail_encoder)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


@dataclass(slots=True)
class _Forward:
    """What the blocks of one forward pass on to each other."""

    groups: Sequence[RowGroup]
    num_rows: int
    hits: list[bool]
    hit_rows: list[tuple[RowGroup, slice]]
    miss_rows: list[tuple[RowGroup, slice]]
    misses: Tensor | None = None  # row indices; None when all rows run
    head_hidden: Tensor | None = None
    head_encoder: Tensor | None = None


class RowCache:
    """Wraps the blocks of one module. Used by the device thread alone.

    Args:
        blocks: In the order in which they run; at least two.
    """

    def __init__(self, blocks: Sequence[CachedBlock]) -> None:
        self._states: dict[tuple[Hashable, str | None], _State] = {}
        self._forward: _Forward | None = None
        self._originals = [(block.module, block.module.forward) for block in blocks]
        self.num_hits = 0
        self.num_misses = 0
        last = len(blocks) - 1
        for index, block in enumerate(blocks):
            block.module.forward = self._wrap(block, is_head=index == 0, is_tail=index == last)

    @property
    def num_bytes(self) -> int:
        """Held for all requests."""
        return sum(state.num_bytes for state in self._states.values())

    def forget(self, owner: Hashable) -> None:
        """Drops what is held for an owner, in all contexts."""
        for key in [key for key in self._states if key[0] == owner]:
            del self._states[key]

    def close(self) -> None:
        """Takes the wrappers off."""
        for module, original in self._originals:
            module.forward = original
        self._states.clear()

    @contextmanager
    def running(self, groups: Sequence[RowGroup]) -> Generator[None]:
        """The module's forward inside is for these calls, in the order of their rows."""
        if any(group.threshold is not None for group in groups):
            self._forward = _Forward(groups, sum(group.rows for group in groups), [], [], [])
        try:
            yield
        finally:
            self._forward = None

    def _wrap(self, block: CachedBlock, *, is_head: bool, is_tail: bool) -> Callable[..., Any]:
        original = block.module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            now = self._forward
            if now is None:
                return original(*args, **kwargs)
            if is_head:
                return self._head(now, block, original, args, kwargs)
            output = self._rest(now, block, original, args, kwargs)
            return self._tail(now, block, output) if is_tail else output

        return forward

    def _head(self, now: _Forward, block: CachedBlock, original: Any, args: Any, kwargs: Any) -> Any:
        before = block.read("hidden_states", args, kwargs)
        output = original(*args, **kwargs)
        hidden, encoder = block.unpack(output)
        change = hidden - before
        start = 0
        missing: list[int] = []
        for group in now.groups:
            rows = slice(start, start + group.rows)
            start += group.rows
            hit = self._is_hit(group, change[rows])
            now.hits.append(hit)
            (now.hit_rows if hit else now.miss_rows).append((group, rows))
            if not hit:
                missing.extend(range(rows.start, rows.stop))
                if group.threshold is not None:
                    self._states[group.key] = _State(head=change[rows].clone())
        if len(missing) < now.num_rows:
            now.misses = torch.tensor(missing, dtype=torch.long, device=hidden.device)
        now.head_hidden, now.head_encoder = hidden, encoder
        return output

    def _is_hit(self, group: RowGroup, change: Tensor) -> bool:
        state = self._states.get(group.key)
        if group.threshold is None or state is None or state.tail is None or state.head.shape != change.shape:
            return False
        moved = (change - state.head).abs().mean() / state.head.abs().mean()
        hit = moved.item() <= group.threshold  # one wait for the device, as in the stock hook
        self.num_hits += hit
        self.num_misses += not hit
        return hit

    def _rest(self, now: _Forward, block: CachedBlock, original: Any, args: Any, kwargs: Any) -> Any:
        """Runs the block for the rows that missed; the others pass through."""
        misses = now.misses
        if misses is None:
            return original(*args, **kwargs)
        hidden = block.read("hidden_states", args, kwargs)
        encoder = block.read("encoder_hidden_states", args, kwargs) if block.encoder_index is not None else None
        if len(misses) == 0:
            return hidden if block.encoder_index is None else _pair(block, hidden, encoder)
        output = original(*_take(args, misses, now.num_rows), **_take(kwargs, misses, now.num_rows))
        new_hidden, new_encoder = block.unpack(output)
        hidden = hidden.index_copy(0, misses, new_hidden)
        if new_encoder is not None and encoder is not None:
            encoder = encoder.index_copy(0, misses, new_encoder)
        return block.pack(hidden, encoder, output)

    def _tail(self, now: _Forward, block: CachedBlock, output: Any) -> Any:
        """Remembers what the blocks added, and adds it again for the rows that hit."""
        hidden, encoder = block.unpack(output)
        head_hidden, head_encoder = now.head_hidden, now.head_encoder
        assert head_hidden is not None
        for group, rows in now.miss_rows:
            state = self._states.get(group.key) if group.threshold is not None else None
            if state is not None:
                state.tail = hidden[rows] - head_hidden[rows]
                if encoder is not None and head_encoder is not None:
                    state.tail_encoder = encoder[rows] - head_encoder[rows]
        if not now.hit_rows:
            return output
        hidden = hidden.clone()
        encoder = None if encoder is None else encoder.clone()
        for group, rows in now.hit_rows:
            state = self._states[group.key]
            assert state.tail is not None  # else it would not have hit
            hidden[rows] = head_hidden[rows] + state.tail
            if encoder is not None and head_encoder is not None and state.tail_encoder is not None:
                encoder[rows] = head_encoder[rows] + state.tail_encoder
        return block.pack(hidden, encoder, output)


def _is_tuple(value: Any) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(value, tuple)


def _pair(block: CachedBlock, hidden: Tensor, encoder: Tensor | None) -> tuple[Any, ...]:
    parts: list[Any] = [None, None]
    parts[block.hidden_index] = hidden
    assert block.encoder_index is not None
    parts[block.encoder_index] = encoder
    return tuple(parts)


def _take(value: Any, rows: Tensor, num_rows: int) -> Any:
    """The given rows of every tensor that has ``num_rows`` of them, in nested containers."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim > 1 and value.shape[0] == num_rows else value
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value)
        return {key: _take(items[key], rows, num_rows) for key in items}
    if isinstance(value, tuple | list):
        return rebuilt(value, (_take(item, rows, num_rows) for item in cast("Sequence[Any]", value)))
    return value


def transformer_blocks(module: torch.nn.Module, *, at_least: int = 2) -> list[CachedBlock]:
    """The blocks of a module that the diffusers library has registered for caching; [] if it has not, or too few.

    Its own cache hooks the same blocks and reads them in the same way.
    """
    names: Any = importlib.import_module("diffusers.hooks._common")._ALL_TRANSFORMER_BLOCK_IDENTIFIERS
    registry: Any = importlib.import_module("diffusers.hooks._helpers").TransformerBlockRegistry
    found: list[CachedBlock] = []
    for name, child in module.named_children():
        if name not in names or not isinstance(child, torch.nn.ModuleList):
            continue
        for block in child:
            try:
                layout = registry.get(type(block))
            except ValueError:  # a class that it does not know
                return []
            found.append(
                CachedBlock(
                    module=block,
                    read=_reader(layout),
                    hidden_index=layout.return_hidden_states_index,
                    encoder_index=layout.return_encoder_hidden_states_index,
                )
            )
    return found if len(found) >= at_least else []


def _reader(layout: Any) -> Callable[[str, Sequence[Any], dict[str, Any]], Any]:
    def read(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        try:
            return layout._get_parameter_from_args_kwargs(name, args, kwargs)
        except (ValueError, KeyError):
            return None

    return read
