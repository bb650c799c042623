"""How many ways a replica's work is cut, by axis; plain numbers, for processes without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

AXES = ("data", "cfg", "context", "tensor")
"""The axes of a mesh, slowest first: ranks next to each other exchange the most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Degrees:
    """Ranks along each axis; their product is the number of processes of a replica.

    Attributes:
        data: Groups that each take a share of a step's rows.
        cfg: Likewise, for the branches of classifier-free guidance, which are rows of one request.
        context: Ranks that share the tokens of each row.
        tensor: Ranks that share the weights of each layer.
        ulysses: Of the context ranks, so many exchange heads; the key/value blocks travel round ``context / ulysses`` groups
            of these. 1 is a plain ring.
    """

    data: int = 1
    cfg: int = 1
    context: int = 1
    tensor: int = 1
    ulysses: int = 1

    def __post_init__(self) -> None:
        if min(self.data, self.cfg, self.context, self.tensor, self.ulysses) < 1:
            raise ValueError(f"{self}: every degree is at least 1")
        if self.context % self.ulysses:
            raise ValueError(f"{self}: ulysses must divide context")

    @property
    def num_ranks(self) -> int:
        """Processes of one replica."""
        return math.prod(map(self._degree, AXES))

    @property
    def ring(self) -> int:
        """Ranks round which key/value blocks travel."""
        return self.context // self.ulysses

    @property
    def num_row_groups(self) -> int:
        """Groups that each compute a share of the rows."""
        return self.data * self.cfg

    def coordinate(self, rank: int, axis: str) -> int:
        """Where a rank is on an axis."""
        return rank // self._stride(axis) % self._degree(axis)

    def row_group(self, rank: int) -> int:
        """Which share of the rows a rank computes."""
        return self.coordinate(rank, "data") * self.cfg + self.coordinate(rank, "cfg")

    def peers(self, rank: int, axis: str) -> tuple[int, ...]:
        """The ranks that differ from this one on no other axis, itself included, in order."""
        stride = self._stride(axis)
        first = rank - self.coordinate(rank, axis) * stride
        return tuple(first + index * stride for index in range(self._degree(axis)))

    def first_of_row_group(self, row_group: int) -> int:
        """The rank that answers for a share of the rows."""
        return row_group * self.context * self.tensor

    def _stride(self, axis: str) -> int:
        return math.prod(map(self._degree, AXES[AXES.index(axis) + 1 :]))

    def _degree(self, axis: str) -> int:
        return {"data": self.data, "cfg": self.cfg, "context": self.context, "tensor": self.tensor}[axis]

    def __str__(self) -> str:
        parts = [f"{axis} {self._degree(axis)}" for axis in AXES if self._degree(axis) > 1]
        if self.context > 1:
            parts.append(f"(ulysses {self.ulysses} x ring {self.ring})")
        return " ".join(parts) or "one process"
