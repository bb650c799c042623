"""The cross-encoder as the core sees it: one sequence a pair, a step is one flat forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sixfold.core.batching.model import Finish, Granted, ModelInfo, Outcome, StepModel, StepRange
from sixfold.core.errors import StepFailed
from sixfold.core.messages import Cost, Request, Usage
from sixfold.plugins.embedding.attention import PackedAttention
from sixfold.plugins.embedding.pieces import Piece, cut
from sixfold.plugins.embedding.rerank.forward import PairForward
from sixfold.plugins.embedding.rerank.pairs import PairTokenizer, PairTokens
from sixfold.plugins.embedding.rerank.schema import ScoreInput, ScoreOutput, check_num_documents

_CHARACTERS_A_TOKEN = 4


class CrossEncoder:
    """A ready network. Used by the device thread alone.

    Args:
        forward: How the classifier runs.
        activation: Makes a score of a logit.
        attention: What `close` takes out of transformers' registry.
    """

    def __init__(
        self, forward: PairForward, *, activation: nn.Module, attention: PackedAttention | None = None
    ) -> None:
        self._forward = forward
        self._activation = activation
        self._attention = attention
        self.num_padding = 0

    @property
    def mode(self) -> str:
        """How the classifier runs."""
        return self._forward.mode

    @torch.inference_mode()
    def score(self, pairs: Sequence[PairTokens]) -> NDArray[np.float32]:
        """Logit and score of each pair: [pairs, 2], in the caller's order."""
        logits, batch = self._forward(pairs)
        logits = logits.float()[:, :1]
        both = torch.cat([logits, self._activation(logits)], dim=1).cpu().numpy()
        self.num_padding += batch.num_padding
        in_order = np.empty_like(both)
        in_order[batch.order] = both
        return in_order

    def close(self) -> None:
        """Takes the attention function out of transformers' registry, the one thing that would outlive this object."""
        if self._attention is not None:
            self._attention.close()


@dataclass(slots=True)
class PairSequence:
    """One pair. Written by `CrossEncoderModel` alone: by `prepare` in the pool, then by `step` in the device thread.

    Attributes:
        tokens: What the model reads.
        raw: Whether the request wants the logit.
        score: After its step.
    """

    tokens: PairTokens
    raw: bool
    score: float = float("nan")


class CrossEncoderModel(StepModel[PairSequence, ScoreInput, ScoreOutput]):
    """A loaded cross-encoder.

    Args:
        info: What the loader found out.
        encoder: Runs the network.
        tokenizer: With the model's limits.
        max_inputs: Most pairs in one request.
        num_threads: CPU threads for steps.
    """

    def __init__(
        self, *, info: ModelInfo, encoder: CrossEncoder, tokenizer: PairTokenizer, max_inputs: int, num_threads: int
    ) -> None:
        self._info = info
        self._encoder = encoder
        self._tokenizer = tokenizer
        self._max_inputs = max_inputs
        self._num_threads = num_threads
        self._num_pairs = 0
        self._num_tokens = 0
        self._num_padding = 0

    @property
    def info(self) -> ModelInfo:
        """See `StepModel`."""
        return self._info

    @property
    def step_range(self) -> StepRange:
        """As for embeddings: the same products."""
        return StepRange(min_units=512, initial_units=2048, max_units=16_384)

    def estimate_units(self, request: Request[ScoreInput]) -> int:
        """See `StepModel`; a token is about four characters, and nothing over the model's limit is computed."""
        wanted = request.input
        longest = self._tokenizer.max_tokens
        return sum(
            min((len(wanted.query_of(index)) + len(document)) // _CHARACTERS_A_TOKEN + 3, longest)
            for index, document in enumerate(wanted.documents)
        )

    def warm_up(self) -> None:
        """Runs short and long batches, so that kernels for these shapes exist."""
        torch.set_num_threads(self._num_threads)  # each thread has its own setting until it is told
        longest = self._tokenizer.max_tokens
        for num_pairs, num_tokens in ((1, 16), (8, 32), (32, 64), (4, 512)):
            ids = np.ones(min(num_tokens, longest), dtype=np.int64)
            lengths = [max(1, len(ids) - index % 5) for index in range(num_pairs)]
            self._encoder.score([PairTokens(ids[:length], np.zeros(length, dtype=np.int64)) for length in lengths])

    def split(self, request: Request[ScoreInput]) -> Sequence[Piece]:
        """See `pieces.cut`; a pair counts its query, too."""
        wanted = request.input
        return cut([len(text) + len(wanted.query_of(index)) for index, text in enumerate(wanted.documents)])

    def prepare(self, request: Request[ScoreInput], piece: object) -> Sequence[PairSequence]:
        """Tokenizes one piece.

        Raises:
            ContextLengthExceeded: A pair is over the model's limit and must not be cut.
            InvalidRequest: Too many pairs, or a limit without room.
        """
        assert isinstance(piece, Piece)
        wanted = request.input
        check_num_documents(wanted, self._max_inputs)
        pairs = self._tokenizer.encode(wanted, piece.start, piece.stop)
        return [PairSequence(pair, wanted.raw_scores) for pair in pairs]

    def cost(self, sequence: PairSequence) -> Cost:
        """All of its tokens at once: a forward can't be cut."""
        units = len(sequence.tokens.token_ids)
        return Cost(units=units, min_units=units)

    def step(self, batch: Sequence[Granted[PairSequence]]) -> Sequence[Outcome[ScoreOutput]]:
        """Scores all pairs of the batch; each is done after its one step."""
        sequences = [granted.sequence for granted in batch]
        padding_before = self._encoder.num_padding
        both = self._encoder.score([sequence.tokens for sequence in sequences])
        outcomes: list[Outcome[ScoreOutput]] = []
        for sequence, (logit, score) in zip(sequences, both.tolist(), strict=True):
            sequence.score = logit if sequence.raw else score
            outcomes.append(_DONE if np.isfinite(sequence.score) else _NOT_FINITE)
        self._num_padding += self._encoder.num_padding - padding_before
        self._num_pairs += len(sequences)
        self._num_tokens += sum(len(sequence.tokens.token_ids) for sequence in sequences)
        return outcomes

    def finish(self, request: Request[ScoreInput], sequences: Sequence[PairSequence]) -> Finish[ScoreOutput]:
        """Joins the scores."""
        num_tokens = sum(len(sequence.tokens.token_ids) for sequence in sequences)
        return Finish(
            result=ScoreOutput(scores=tuple(sequence.score for sequence in sequences)),
            usage=Usage(counts={"prompt_tokens": num_tokens}),
        )

    def stats(self) -> Mapping[str, float]:
        """See `Family.metrics` in plugin.py."""
        return {
            "rerank_pairs_total": self._num_pairs,
            "rerank_tokens_total": self._num_tokens,
            "rerank_padding_tokens_total": self._num_padding,
        }

    def close(self) -> None:
        """See `StepModel`."""
        self._encoder.close()


_DONE: Outcome[ScoreOutput] = Outcome(done=True)
_NOT_FINITE: Outcome[ScoreOutput] = Outcome(
    done=True, error=StepFailed("The model gave no finite score for a pair of this request.")
)
