"""Rank 0's side of prompts that several ranks compute: which chunks are divided, the order to the others, a test at the start."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sixfold.core.errors import ConfigError
from sixfold.core.family import LoadContext
from sixfold.core.parallel.attention import UnsupportedAttention
from sixfold.core.parallel.leader import Leader
from sixfold.core.parallel.modules import RankModule
from sixfold.plugins.llm.batch_layout import StoredChunk
from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.divided_attention import DividedRows
from sixfold.plugins.llm.divided_chunks import num_divided, stored_chunk
from sixfold.plugins.llm.divided_decoder import ComputeRows, DividedDecoder
from sixfold.plugins.llm.memory_need import parallel_tokens
from sixfold.plugins.llm.options import TransformersOptions
from sixfold.plugins.llm.tensors import index_tensor, int_list

if TYPE_CHECKING:
    from sixfold.plugins.llm.decoder import Decoder

MODULE = "decoder"
"""Name of the module that all ranks have."""

# A first chunk, and one that follows it: the ways that a chunk can go over ranks.
_CHECKED_CHUNKS = (61, 47)
_MAX_DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


class PrefillRanks:
    """Decides what goes over the ranks. Owned by the device thread.

    Args:
        leader: Of the ranks.
        decoder: Whose steps are divided.
        min_tokens: Chunks of fewer tokens are computed by rank 0 alone.
    """

    def __init__(self, leader: Leader, decoder: Decoder, min_tokens: int) -> None:
        self._leader = leader
        self._decoder = decoder
        self._min_tokens = min_tokens
        self._compute: ComputeRows | None = None
        self.module = DividedDecoder(self._compute_own, decoder.cache.scheme)

    def choose(self, sequences: Sequence[CachedTokens], units: Sequence[int]) -> list[int]:
        """How many of the first tokens of each sequence the ranks compute together in this step."""
        return num_divided(sequences, units, self._min_tokens)

    def store(self, sequence: CachedTokens, num_tokens: int) -> StoredChunk:
        """Where the next tokens of a sequence are kept."""
        return stored_chunk(
            sequence,
            num_tokens,
            degrees=self._leader.degrees,
            block_size=self._decoder.cache.block_size,
            device=self._decoder.device,
        )

    def run(self, chunks: Sequence[StoredChunk], compute: ComputeRows) -> Tensor | None:
        """Has all ranks compute their rows of the chunks, this one by ``compute``; returns what this one made.

        Raises:
            DeviceLost: A rank is gone or hangs.
        """
        self._compute = compute
        token_ids = tuple(index_tensor(chunk.token_ids, torch.device("cpu")) for chunk in chunks)
        num_past = tuple(0 if chunk.past is None else chunk.past.num_context for chunk in chunks)
        try:
            logits: Tensor | None = self._leader.run(self.module, [{"token_ids": token_ids, "num_past": num_past}])[0]
        finally:
            self._compute = None
        return logits

    def _compute_own(self, rows: DividedRows, token_ids: Tensor, positions: Tensor) -> Tensor | None:
        assert self._compute is not None, "rank 0 computes what it has ordered"
        return self._compute(rows, token_ids, positions)

    def check(self, *, vocab_size: int, max_tokens: int, place: str) -> None:
        """Computes a prompt over the ranks and in this process alone. For the start.

        Raises:
            ConfigError: The layers can't be divided, or something else comes out.
        """
        factor = max(1, self._leader.degrees.context // 4)
        total = min(sum(_CHECKED_CHUNKS) * factor + 1, max_tokens, self._decoder.cache.num_tokens)
        first = (total - 1) * _CHECKED_CHUNKS[0] // sum(_CHECKED_CHUNKS)
        chunks = (first, total - 1 - first, 1)
        generator = torch.Generator().manual_seed(0)
        tokens = int_list(torch.randint(0, vocab_size, (total,), generator=generator))
        with self._dividing_from(total):
            alone = self._decoder.run([tokens], chunks)
        try:
            with self._dividing_from(1):
                divided = self._decoder.run([tokens], chunks)
        except UnsupportedAttention as error:
            raise ConfigError(f"{place}: {error}. Remove 'parallel'.") from error
        assert alone is not None and divided is not None, "there is room for one prompt"
        reference = alone.float()
        difference = float((divided.float() - reference).abs().max() / reference.abs().max())
        allowed = _MAX_DIFFERENCE[self._decoder.cache.dtype]
        if not difference <= allowed:
            raise ConfigError(
                f"{place}: divided as {self._leader.degrees}, the model gives other logits than in one process (relative "
                f"difference {difference:.2g}, allowed {allowed:g}), so it is not served. Remove 'parallel', and please "
                "report this model."
            )

    @contextlib.contextmanager
    def _dividing_from(self, min_tokens: int) -> Generator[None]:
        before, self._min_tokens = self._min_tokens, min_tokens
        try:
            yield
        finally:
            self._min_tokens = before


def check_degrees(context: LoadContext, options: TransformersOptions) -> None:
    """Refuses what ranks can't compute, before weights are read.

    Raises:
        ConfigError: See there.
    """
    if context.parallel is None:
        return
    place, degrees = f"models.{context.model_name}.parallel", context.parallel.degrees
    if degrees.num_row_groups > 1:
        raise ConfigError(
            f"{place}: the ranks of a language model share the tokens of long prompts, and that is 'context'. Set it in place "
            "of 'cfg' and 'data', or use 'replicas' for more requests at once."
        )
    if options.speculation.method == "eagle3":
        raise ConfigError(
            f"{place}: an EAGLE-3 head reads the hidden states of all tokens in one process. Choose another "
            "speculation.method, or remove 'parallel'."
        )


def divide_prefill(context: LoadContext, options: TransformersOptions, decoder: Decoder, *, vocab_size: int) -> None:
    """Meets the other ranks, if there are any, and proves that long prompts come out as in one process.

    Raises:
        ConfigError: They do not, or a rank can't load the model.
        SixfoldError: A rank ended, or did not load in time.
    """
    if context.parallel is None:
        return
    ranks = PrefillRanks(context.parallel, decoder, parallel_tokens(options, context.device))
    context.report(0.9, "waiting for the other ranks")
    context.parallel.share({MODULE: RankModule(module=ranks.module, splits_itself=True)})
    decoder.divide(ranks)
    max_tokens = options.max_model_len or decoder.cache.num_tokens
    ranks.check(vocab_size=vocab_size, max_tokens=max_tokens, place=f"models.{context.model_name}.parallel")
