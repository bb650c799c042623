"""What a forward that is split among context ranks keeps while it runs: its key, the lengths of its parts, what is split.

A share is per thread and per forward. Where none is active, a module computes alone, as it is.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Generator, Hashable
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sixfold.core.parallel.attention import Lengths, UnsupportedAttention, parallel_attention
from sixfold.core.parallel.exchange import all_gather, gather_lengths
from sixfold.core.parallel.mesh import Mesh
from sixfold.core.parallel.tokens import even_lengths

_MAX_KNOWN_FORWARDS = 256
_local = threading.local()
_sdpa: Any = torch.nn.functional.scaled_dot_product_attention


class LengthBook:
    """The lengths of all ranks' parts, learned in the first forward of each kind. Owner: the thread of the forwards.

    Ranks ask each other on the host, once per kind of forward and place in it; later forwards of the kind read. All ranks
    see the same kinds in the same order, so they ask and forget together.

    Args:
        mesh: Of this rank.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._known: OrderedDict[Hashable, list[tuple[int, ...]]] = OrderedDict()

    def of_kind(self, key: Hashable) -> list[tuple[int, ...]]:
        """The lengths of a kind of forward, in the order in which it asks."""
        known = self._known.setdefault(key, [])
        self._known.move_to_end(key)
        if len(self._known) > _MAX_KNOWN_FORWARDS:
            self._known.popitem(last=False)
        return known

    def ask(self, known: list[tuple[int, ...]], place: int, length: int) -> tuple[int, ...]:
        """What each rank has where this one has ``length``."""
        if place == len(known):
            known.append(gather_lengths(length, self._mesh.control))
        if known[place][self._mesh.context.index] != length:
            raise RuntimeError(f"a split forward took another path: {length} tokens where {known[place]} were known")
        return known[place]


class Share:
    """One forward of one rank. Owner: its thread.

    Args:
        mesh: Of this rank.
        book: Of this rank.
        key: Equal for forwards that ask for the same lengths in the same order.

    Attributes:
        is_split: Whether the hidden states are split now.
        cross_depth: Attention modules around this place whose keys every rank has whole.
        totals: Of what was split, by name, for those who split the same again.
    """

    def __init__(self, mesh: Mesh, book: LengthBook, key: Hashable) -> None:
        self.mesh = mesh
        self._book = book
        self._known = book.of_kind(key)
        self._place = 0
        self.is_split = False
        self.cross_depth = 0
        self.totals: dict[str, int] = {}

    def take(self, tensor: Tensor, dim: int) -> Tensor:
        """This rank's part."""
        group = self.mesh.context
        lengths = even_lengths(tensor.shape[dim], group.size)
        return tensor.narrow(dim, sum(lengths[: group.index]), lengths[group.index])

    def gather(self, tensor: Tensor, dim: int) -> Tensor:
        """All ranks' parts, put together."""
        return all_gather(tensor, self.lengths(tensor.shape[dim]), dim, self.mesh.context)

    def lengths(self, length: int) -> tuple[int, ...]:
        """Of the parts of all ranks."""
        found = self._book.ask(self._known, self._place, length)
        self._place += 1
        return found

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        """Attention of this rank's queries to all ranks' keys."""
        # Asked even if the two are equal here: in another rank they may not be, and all ranks must ask alike.
        lengths = Lengths(query=self.lengths(query.shape[2]), key=self.lengths(key.shape[2]))
        return parallel_attention(query, key, value, self.mesh, lengths, mask=mask, scale=scale)


def current_share() -> Share | None:
    """That of the forward which runs on this thread, if it is split."""
    return getattr(_local, "share", None)


@contextmanager
def sharing(share: Share, *, takes_attention: bool = True) -> Generator[Share]:
    """Forwards of this thread inside are split.

    Args:
        share: Of the forward.
        takes_attention: Whether torch's own attention goes over the ranks.
    """
    _local.share = share
    try:
        with _SplitAttention(share) if takes_attention else nullcontext():
            yield share
    finally:
        _local.share = None


class _SplitAttention(TorchFunctionMode):
    """Sends torch's own attention over the ranks, whatever code calls it: no model is patched for it."""

    def __init__(self, share: Share) -> None:
        super().__init__()
        self._share = share

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called for every function of torch."""
        share = self._share
        if func is not _sdpa or not share.is_split or share.cross_depth:
            return func(*args, **(kwargs or {}))
        return _attend(share, *args, **(kwargs or {}))


def _attend(
    share: Share,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if is_causal or dropout_p or query.ndim != 4:
        raise UnsupportedAttention("it is causal, has a dropout, or not four dimensions")
    return share.attend(query, key, value, attn_mask, scale)
