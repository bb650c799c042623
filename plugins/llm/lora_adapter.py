"""A LoRA adapter in memory: for each linear layer that it changes, two thin matrices whose product is added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleShape:
    """What a linear layer of the decoder maps."""

    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """``x @ down.T @ up.T`` is added to what a linear layer gives.

    Attributes:
        down: [rank, in_features].
        up: [out_features, rank], the adapter's scale included.
    """

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        """Columns between the two."""
        return len(self.down)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False, kw_only=True)
class Adapter:
    """One loaded adapter. Lives as long as somebody holds it: the table of names, or a sequence that uses it.

    Attributes:
        name: What clients send as ``model``.
        identity: Of its content, the same in every process: cached prefixes of two adapters are told apart by it.
        rank: The largest of its layers.
        layers: By the layer's name in the stock model.
    """

    name: str
    identity: bytes
    rank: int
    layers: Mapping[str, LowRank]

    @property
    def num_bytes(self) -> int:
        """Memory of its matrices."""
        return sum(pair.down.nbytes + pair.up.nbytes for pair in self.layers.values())
