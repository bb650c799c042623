"""The module that all ranks of a decoder have: it computes this rank's rows of the chunks that rank 0 divides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sixfold.core.parallel.share import current_share
from sixfold.plugins.llm.attention import PAGED_STEP
from sixfold.plugins.llm.cache_policy import CacheScheme
from sixfold.plugins.llm.divided_attention import DividedRows
from sixfold.plugins.llm.divided_chunks import DividedChunk

ComputeRows = Callable[[DividedRows, Tensor, Tensor], Tensor | None]
"""Computes rows, of the tokens ``[rows]`` at the positions ``[rows]``."""


class DividedDecoder(nn.Module):
    """A forward of divided chunks in one rank.

    Args:
        compute: Of this rank.
        scheme: How rank 0's cache keeps numbers.
    """

    def __init__(self, compute: ComputeRows, scheme: CacheScheme | None) -> None:
        super().__init__()
        self._compute = compute
        self._scheme = scheme

    def forward(self, token_ids: Sequence[Tensor], num_past: Sequence[int]) -> Tensor | None:
        """Called in all ranks with the same arguments, by `sixfold.core.parallel.modules.RankModules`.

        Args:
            token_ids: [tokens] of each chunk.
            num_past: Tokens before each.

        Returns:
            Whatever this rank makes of it; rank 0's is of use.
        """
        share = current_share()
        assert share is not None, "only forwards over ranks come here"
        mesh = share.mesh
        chunks = tuple(
            DividedChunk.of(num_tokens=len(ids), num_past=past, degrees=mesh.degrees)
            for ids, past in zip(token_ids, num_past, strict=True)
        )
        places = [chunk.places(mesh.context.index).to(mesh.device) for chunk in chunks]
        own = torch.cat([ids.to(mesh.device)[at] for ids, at in zip(token_ids, places, strict=True)])
        positions = torch.cat([at + chunk.num_past for chunk, at in zip(chunks, places, strict=True)])
        return self._compute(DividedRows(mesh=mesh, chunks=chunks, scheme=self._scheme), own, positions)


def rows_alone(base: Any) -> ComputeRows:
    """For ranks without a cache: nothing is made of the last hidden states.

    Args:
        base: A decoder without its head, whose attention function is `divided_attention.DIVIDED_ATTENTION`.
    """

    def compute(rows: DividedRows, token_ids: Tensor, positions: Tensor) -> None:
        arguments: dict[str, Any] = {"use_cache": False, PAGED_STEP: rows}
        with torch.inference_mode():
            base(input_ids=token_ids[None], position_ids=positions[None], **arguments)

    return compute
