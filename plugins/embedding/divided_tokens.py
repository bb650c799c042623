"""Attention of a sequence whose tokens several ranks have."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sixfold.core.parallel.attention import Lengths, UnsupportedAttention, parallel_attention
from sixfold.core.parallel.mesh import Mesh
from sixfold.core.parallel.tokens import TokenOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class DividedTokens:
    """One sequence in this rank.

    Attributes:
        mesh: Of this rank.
        order: Which tokens each rank has.
    """

    mesh: Mesh
    order: TokenOrder

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, causal: bool, window: int | None
    ) -> Tensor:
        """What this rank's tokens make of all. All ranks call it.

        Args:
            query: [this rank's tokens, heads, head dim].
            key: [this rank's tokens, kv heads, head dim].
            value: As ``key``.
            scaling: Of the products; None for ``head_dim ** -0.5``.
            causal: Whether a token sees those before it alone.
            window: Must be None.

        Returns:
            As ``query``.

        Raises:
            UnsupportedAttention: The layer has a window.
        """
        if window is not None:
            raise UnsupportedAttention("its layers look at tokens nearby only, which can't be divided among ranks yet")
        rows = [each.transpose(0, 1)[None] for each in (query, key, value)]
        lengths = Lengths(query=self.order.lengths, key=self.order.lengths)
        order = self.order if causal else None
        attended = parallel_attention(rows[0], rows[1], rows[2], self.mesh, lengths, order=order, scale=scaling)
        return attended[0].transpose(0, 1)
