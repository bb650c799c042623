"""Attention over a flat batch of whole sequences, as a transformers attention function and for fused layers."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from sixfold.plugins.embedding.divided_tokens import DividedTokens
from sixfold.plugins.embedding.packing import Group, PackedBatch

if TYPE_CHECKING:
    from sixfold.core.runtime.gpu_layers import Spans

# Keyword arguments of attention functions that change the result and that this one does not know.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "cache", "block_mask")


# Up to here two batched bfloat16 products beat the fused kernel on a CPU by 1.2 to 3 times (torch 2.13, 12 heads of 32,
# AVX512-BF16, memory kept by `sixfold.core.runtime.allocator`); the scores of longer rows would take too much memory. In
# float32 the fused kernel wins.
_MAX_SHORT_TOKENS = 512

_INTERFACE: Any = AttentionInterface  # transformers has no way to take a function out again but this private table


class PackedAttention:
    """The attention function of one model; knows the batch that the model is running.

    Registered with transformers under a name of its own, for which transformers makes no mask at all: a model that uses
    the attention interface then passes the whole flat batch here. Each thread that uses it has a batch of its own.

    Attributes:
        name: What to pass to ``set_attn_implementation``.
        num_calls: Calls so far; a model that does not use the attention interface never calls.
    """

    def __init__(self) -> None:
        self.name = f"sixfold_packed_{id(self):x}"
        self.num_calls = 0
        self._own = threading.local()  # each thread runs a batch of its own
        _INTERFACE.register(self.name, self)

    def close(self) -> None:
        """Takes the function out of transformers' registry."""
        _INTERFACE._global_mapping.pop(self.name, None)

    @contextmanager
    def running(self, batch: PackedBatch) -> Generator[None]:
        """All calls inside are for this batch."""
        self._own.batch, self._own.hidden = batch, {}
        try:
            yield
        finally:
            self._own.batch, self._own.hidden = None, {}

    @contextmanager
    def dividing(self, tokens: DividedTokens) -> Generator[None]:
        """All calls inside are for this rank's share of one sequence."""
        self._own.divided = tokens
        try:
            yield
        finally:
            self._own.divided = None

    @property
    def _divided(self) -> DividedTokens | None:
        divided: DividedTokens | None = getattr(self._own, "divided", None)
        return divided

    @property
    def _batch(self) -> PackedBatch | None:
        batch: PackedBatch | None = getattr(self._own, "batch", None)
        return batch

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        sliding_window: int | None = None,
        **others: object,
    ) -> tuple[Tensor, None]:
        """The signature that transformers calls.

        Args:
            module: The calling attention layer.
            query: [1, heads, total_tokens, head_dim].
            key: [1, key_heads, total_tokens, head_dim].
            value: Like ``key``.
            attention_mask: Must be None.
            scaling: Of the products; None for ``head_dim ** -0.5``.
            dropout: Must be 0.
            is_causal: None asks the module, as transformers' own functions do.
            sliding_window: A token sees tokens that are less than this far away; None for all.
            others: What other attention functions read; one that would change the result is refused.

        Returns:
            ([1, total_tokens, heads, head_dim], None)

        Raises:
            NotImplementedError: The model wants what this function can't do; it must run in padded batches.
        """
        unknown = [name for name in _UNSUPPORTED if others.get(name) is not None]
        divided, batch = self._divided, self._batch
        has_rows = batch is not None or divided is not None
        if attention_mask is not None or dropout or unknown or not has_rows or query.shape[0] != 1:
            raise NotImplementedError(f"packed attention can't run {type(module).__name__} ({unknown or 'mask'})")
        self.num_calls += 1
        causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
        rows = [x[0].transpose(0, 1) for x in (query, key, value)]
        if divided is not None:
            own = divided.attend(rows[0], rows[1], rows[2], scaling=scaling, causal=causal, window=sliding_window)
            return own[None], None
        assert batch is not None
        if batch.spans is not None:
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            attended = _by_spans(
                rows[0], rows[1], rows[2], batch.spans, scaling=scale, causal=causal, window=sliding_window
            )
            return attended[None], None
        result = torch.empty_like(rows[0], memory_format=torch.contiguous_format)
        for group in batch.groups:
            blocks = [_to_block(x, group) for x in rows]
            _from_block(_attend(blocks, group, scaling, causal, sliding_window), group, result)
        return result[None], None

    def attend_flat(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        causal: bool = False,
        window: int | None = None,
    ) -> Tensor:
        """For layers that are made for GPUs; see `attend_spans`."""
        if self._divided is not None:
            return self._divided.attend(query, key, value, scaling=scaling, causal=causal, window=window)
        assert self._batch is not None
        assert self._batch.spans is not None, "such layers are run where batches have spans"
        self.num_calls += 1
        return _by_spans(query, key, value, self._batch.spans, scaling=scaling, causal=causal, window=window)

    def attend_fused(self, qkv: Tensor, num_heads: int, scaling: float) -> Tensor:
        """Full attention where one product made all three inputs.

        Args:
            qkv: [total_tokens, 3 * heads * head_dim]: all queries, all keys, all values of a token.
            num_heads: Heads of each.
            scaling: Of the products.

        Returns:
            [total_tokens, heads * head_dim]
        """
        self.num_calls += 1
        total = qkv.shape[0]
        rows = qkv.view(total, 3 * num_heads, -1)
        if self._divided is not None:
            query, key, value = rows.chunk(3, dim=1)
            own = self._divided.attend(query, key, value, scaling=scaling, causal=False, window=None)
            return own.reshape(total, -1)
        assert self._batch is not None
        if self._batch.spans is not None:
            query, key, value = rows.chunk(3, dim=1)
            return _by_spans(query, key, value, self._batch.spans, scaling=scaling).view(total, -1)
        result = qkv.new_empty(total, num_heads, rows.shape[-1])
        for group in self._batch.groups:
            if _is_short(group, qkv):
                result[group.start : group.stop] = self._attend_short(rows, group, num_heads, scaling)
                continue
            block = _to_block(rows, group)
            _from_block(_attend(block.chunk(3, dim=2), group, scaling, False, None), group, result)
        return result.view(total, -1)

    def _attend_short(self, rows: Tensor, group: Group, num_heads: int, scaling: float) -> Tensor:
        """Two batched products instead of the fused kernel, which is made for long rows.

        Args:
            rows: [total_tokens, 3 * heads, head_dim]
            group: Which of them.
            num_heads: Heads of each input.
            scaling: Of the products.

        Returns:
            [group's tokens, heads, head_dim], a view.
        """
        heads_first = rows[group.start : group.stop].transpose(0, 1)
        padded = heads_first if group.gather is None else heads_first.index_select(1, group.gather)
        num_blocks = num_heads * group.num_sequences
        query, key, value = padded.reshape(3, num_blocks, group.max_tokens, -1)
        if group.is_real is None:
            unread = query.new_empty(1, 1, 1)  # beta=0: only the factor of the product is wanted
            scores = torch.baddbmm(unread, query, key.transpose(1, 2), beta=0, alpha=scaling)
        else:
            hidden = self._hidden_keys(group.is_real, group, num_blocks)
            scores = torch.baddbmm(hidden, query, key.transpose(1, 2), alpha=scaling)
        attended = torch.bmm(torch.softmax(scores, dim=-1), value).view(num_heads, -1, rows.shape[-1])
        if group.scatter is not None:
            attended = attended.index_select(1, group.scatter)
        return attended.transpose(0, 1)

    def _hidden_keys(self, is_real: Tensor, group: Group, num_blocks: int) -> Tensor:
        """[heads * sequences, max_tokens, max_tokens], minus infinity at padded keys; the same for all layers."""
        known: dict[int, Tensor] = self._own.hidden
        found = known.get(group.start)
        if found is None:
            found = torch.zeros(is_real[:, 0].shape, dtype=torch.bfloat16).masked_fill_(~is_real[:, 0], -torch.inf)
            found = found.repeat(num_blocks // group.num_sequences, 1, 1)
            known[group.start] = found
        return found.expand(-1, group.max_tokens, -1)


def _by_spans(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Spans,
    *,
    scaling: float,
    causal: bool = False,
    window: int | None = None,
) -> Tensor:
    from sixfold.core.runtime.gpu_layers import attend_spans  # its kernels need Triton, which is there on GPUs only

    return attend_spans(query, key, value, spans, scaling=scaling, causal=causal, window=window)


def _is_short(group: Group, inputs: Tensor) -> bool:
    return group.max_tokens <= _MAX_SHORT_TOKENS and inputs.dtype is torch.bfloat16 and inputs.device.type == "cpu"


def _to_block(rows: Tensor, group: Group) -> Tensor:
    """[total_tokens, heads, head_dim] to [sequences, tokens, heads, head_dim]."""
    mine = rows[group.start : group.stop]
    if group.gather is not None:
        mine = mine.index_select(0, group.gather)
    return mine.view(group.num_sequences, group.max_tokens, *mine.shape[1:])


def _from_block(block: Tensor, group: Group, result: Tensor) -> None:
    """Writes [sequences, tokens, heads, head_dim] to its place in [total_tokens, heads, head_dim]."""
    mine = result[group.start : group.stop]
    if group.scatter is None:
        mine.copy_(block.flatten(0, 1))
    else:
        torch.index_select(block.flatten(0, 1), 0, group.scatter, out=mine)


def _attend(
    blocks: list[Tensor] | tuple[Tensor, ...], group: Group, scaling: float | None, causal: bool, window: int | None
) -> Tensor:
    query, key, value = (x.transpose(1, 2) for x in blocks)
    mask = _mask(group, causal, window, query.device)
    result = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        # Padding is on the right, so no real query sees it behind a causal mask.
        is_causal=causal and mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return result.transpose(1, 2)


def _mask(group: Group, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
    """True where a query may look; None where the kernel needs no mask (or makes the causal one itself)."""
    if window is None or group.max_tokens <= window:
        return None if causal else group.is_real
    place = torch.arange(group.max_tokens, device=device)
    distance = place[:, None] - place
    near = (distance < window) & (distance >= 0) if causal else distance.abs() < window
    # A padded query sees itself at least, so no row of the mask is empty; its result is dropped.
    return near if group.is_real is None or causal else near & (group.is_real | (distance == 0))
