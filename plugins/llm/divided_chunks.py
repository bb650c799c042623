"""Chunks of prompts that the ranks of a replica compute together: which tokens each rank has, and where rank 0 keeps them.

Ranks keep nothing between steps: what came before a chunk is read from rank 0's blocks, layer by layer, each time. So a prefix
that was found, a preempted or cancelled sequence and whatever else happens to blocks need no word about ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sixfold.core.parallel.degrees import Degrees
from sixfold.core.parallel.tokens import TokenOrder, divide
from sixfold.plugins.llm.batch_layout import PrefillChunk, StoredChunk, lay_out
from sixfold.plugins.llm.cached_tokens import CachedTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class DividedChunk:
    """Consecutive tokens of one sequence, divided among the ranks.

    Attributes:
        num_past: Tokens of the sequence before it.
        order: Which of its tokens each rank has, counted from its own first.
    """

    num_past: int
    order: TokenOrder

    @classmethod
    def of(cls, *, num_tokens: int, num_past: int, degrees: Degrees) -> DividedChunk:
        """The same in all ranks. Round a ring parts are mirrored, so that all ranks see as much of the past."""
        return cls(num_past=num_past, order=divide(num_tokens, degrees, zigzag=degrees.ring > 1))

    def places(self, rank: int) -> Tensor:
        """[this rank's tokens] their places in the chunk, in its order."""
        return torch.cat([torch.arange(part.start, part.stop) for part in self.order.ranks[rank]] or [torch.arange(0)])


def stored_chunk(
    sequence: CachedTokens, num_tokens: int, *, degrees: Degrees, block_size: int, device: torch.device
) -> StoredChunk:
    """Where rank 0 keeps the next tokens of a sequence, whose blocks are reserved."""
    layout = lay_out([sequence], [num_tokens], block_size=block_size, device=device)
    (whole,) = layout.prefills
    num_past = whole.num_context - num_tokens
    past: PrefillChunk | None = None
    if whole.block_ids is not None:
        block_ids = whole.block_ids[: -(-num_past // block_size)]
        past = PrefillChunk(start=0, end=num_tokens, num_context=num_past, block_ids=block_ids)
    chunk = DividedChunk.of(num_tokens=num_tokens, num_past=num_past, degrees=degrees)
    order = torch.cat([chunk.places(rank) for rank in range(degrees.context)]).to(device)
    return StoredChunk(
        token_ids=sequence.token_ids[num_past : whole.num_context],
        layout=dataclasses.replace(layout, blocks=layout.blocks[order], offsets=layout.offsets[order]),
        past=past,
    )


def num_divided(sequences: Sequence[CachedTokens], units: Sequence[int], min_tokens: int) -> list[int]:
    """How many of the tokens that each sequence computes in a step the ranks compute together.

    The last token of a chunk stays with rank 0, whatever follows from it: logits, drafts, the next token.

    Args:
        sequences: Of the step.
        units: Tokens of each.
        min_tokens: Fewer are not worth the exchange.
    """
    if any(sequence.adapter is not None for sequence in sequences):  # they count on having all rows of the step
        return [0] * len(sequences)
    return [
        _num_divided(sequence, n, min_tokens) if n > min_tokens else 0
        for sequence, n in zip(sequences, units, strict=True)
    ]


def _num_divided(sequence: CachedTokens, units: int, min_tokens: int) -> int:
    if sequence.images or sequence.rope is not None or sequence.num_scored:
        return 0  # features, positions in several directions and logits of every token are rank 0's alone
    num_known = len(sequence.token_ids) - sequence.num_begun
    found = min(units, num_known) - 1
    return found if found >= min_tokens else 0
