"""The embedding model as the core sees it: requests become one sequence an input, a step is one flat forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sixfold.core.batching.model import Finish, Granted, ModelInfo, Outcome, StepModel, StepRange
from sixfold.core.errors import StepFailed
from sixfold.core.messages import Cost, Request, Usage
from sixfold.plugins.embedding.encoder import Encoder, EncoderInput, Outputs
from sixfold.plugins.embedding.flights import Flights
from sixfold.plugins.embedding.outputs.answer import as_output
from sixfold.plugins.embedding.outputs.similarity import pair_scores
from sixfold.plugins.embedding.pieces import Piece, cut
from sixfold.plugins.embedding.preparer import Preparer, inputs_of
from sixfold.plugins.embedding.rerank.schema import ScoreInput, ScoreOutput
from sixfold.plugins.embedding.schema import EmbeddingInput, EmbeddingOutput
from sixfold.plugins.embedding.sequence import DENSE, EmbeddingSequence, texts_of
from sixfold.plugins.embedding.side_by_side import SideBySide
from sixfold.plugins.embedding.tokenizing import Prompts, TextTokenizer

AnyInput = EmbeddingInput | ScoreInput
AnyOutput = EmbeddingOutput | ScoreOutput

_CHARACTERS_A_TOKEN = 4


class EmbeddingModel(StepModel[EmbeddingSequence, AnyInput, AnyOutput]):
    """A loaded sentence-transformers model.

    Args:
        info: What the loader found out.
        encoder: Runs the network.
        tokenizer: With the model's limits.
        prompts: The model's own.
        max_inputs: Most inputs in one request.
        num_threads: CPU threads for steps.
        parts_pay: Whether the texts of a step may be embedded in parts, see `side_by_side`.
        flies: Whether the device computes a step while the host lays out the next, see `flights`.
        graph_tokens: Steps of up to so many tokens are recorded as CUDA graphs, where there are any.
        similarity: Name of the function that scores two vectors.
    """

    def __init__(
        self,
        *,
        info: ModelInfo,
        encoder: Encoder,
        tokenizer: TextTokenizer,
        prompts: Prompts,
        max_inputs: int,
        num_threads: int,
        parts_pay: bool = False,
        flies: bool = False,
        graph_tokens: int = 0,
        similarity: str = "cosine",
    ) -> None:
        self._info = info
        self._encoder = encoder
        self._tokenizer = tokenizer
        self._preparer = Preparer(encoder, tokenizer, prompts, max_inputs=max_inputs)
        self._num_threads = num_threads
        self._parts = SideBySide(encoder, num_threads) if parts_pay and num_threads > 1 else None
        self.flies = flies
        self._graph_tokens = graph_tokens
        self._flights: Flights[EmbeddingSequence] | None = None
        self._similarity = similarity
        self._num_inputs = 0
        self._num_tokens = 0
        self._num_padding = 0

    @property
    def info(self) -> ModelInfo:
        """See `StepModel`."""
        return self._info

    @property
    def step_range(self) -> StepRange:
        """Below 512 tokens the products are too thin; above 16k nothing is gained and memory is lost."""
        return StepRange(min_units=512, initial_units=2048, max_units=16_384)

    def estimate_units(self, request: Request[AnyInput]) -> int:
        """See `StepModel`; a token is about four characters, and nothing over the model's limit is computed."""
        longest = self._tokenizer.max_tokens
        return sum(
            min(len(item) // _CHARACTERS_A_TOKEN + 2 if isinstance(item, str) else len(item), longest)
            for item in inputs_of(request.input)
        )

    def attach(self, wake: Callable[[], None]) -> None:
        """See `StepModel`; without it steps are computed to their end."""
        if self.flies:
            self._flights = Flights(wake)

    def warm_up(self) -> None:
        """Runs short and long batches, so that kernels for these shapes exist, and records steps as graphs."""
        torch.set_num_threads(self._num_threads)  # each thread has its own setting until it is told
        self._encoder.record(self._graph_tokens)
        longest = self._tokenizer.max_tokens
        for num_sequences, num_tokens in ((1, 8), (8, 32), (32, 64), (4, 512)):
            ids = np.ones(min(num_tokens, longest), dtype=np.int64)
            batch = [ids[: max(1, len(ids) - i % 5)] for i in range(num_sequences)]
            if self._encoder.output_types[0] == "dense":
                (self._parts or self._encoder).embed(batch, [0] * num_sequences)
            else:
                wanted = self._encoder.output_types
                self._encoder.encode([EncoderInput(token_ids=each, wanted=wanted) for each in batch])

    def split(self, request: Request[AnyInput]) -> Sequence[Piece]:
        """See `pieces.cut`."""
        return cut([len(item) for item in inputs_of(request.input)])

    def prepare(self, request: Request[AnyInput], piece: object) -> Sequence[EmbeddingSequence]:
        """Tokenizes one piece.

        Raises:
            ContextLengthExceeded: An input is over the model's limit and must not be cut.
            InvalidRequest: Unknown prompt, wrong token ids, too many inputs or dimensions.
        """
        assert isinstance(piece, Piece)
        return self._preparer.prepare(request.input, piece)

    def cost(self, sequence: EmbeddingSequence) -> Cost | None:
        """All of its tokens at once: a forward can't be cut."""
        if sequence.is_flying:
            return None
        units = len(sequence.token_ids)
        return Cost(units=units, min_units=units)

    def step(self, batch: Sequence[Granted[EmbeddingSequence]]) -> Sequence[Outcome[AnyOutput]]:
        """Embeds all sequences of the batch, or starts it; each is done after its one step."""
        sequences = [granted.sequence for granted in batch]
        padding_before = self._encoder.num_padding  # trials and the warm-up padded, too
        outcomes: list[Outcome[AnyOutput]]
        if any(sequence.wanted != DENSE for sequence in sequences):
            outcomes = self._step_any(sequences)
        elif self._flights is not None:
            outcomes = self._start_dense(sequences, self._flights)
        else:
            outcomes = self._step_dense(sequences)
        self._num_padding += self._encoder.num_padding - padding_before
        self._num_inputs += len(sequences)
        self._num_tokens += sum(len(sequence.token_ids) for sequence in sequences)
        return outcomes

    def collect(self) -> Sequence[tuple[EmbeddingSequence, Outcome[AnyOutput]]]:
        """Hands out the steps that have arrived; see `StepModel`."""
        if not self._flights:
            return ()
        found: list[tuple[EmbeddingSequence, Outcome[AnyOutput]]] = []
        for flight in self._flights.landed():
            outcomes = self._keep_each(flight.sequences, flight.wait())
            for sequence, outcome in zip(flight.sequences, outcomes, strict=True):
                sequence.is_flying = False
                found.append((sequence, outcome))
        return found

    def finish(self, request: Request[AnyInput], sequences: Sequence[EmbeddingSequence]) -> Finish[AnyOutput]:
        """Joins the vectors, cut to the dimensions that were asked for, or the scores of the pairs."""
        usage = Usage(counts={"prompt_tokens": sum(len(sequence.token_ids) for sequence in sequences)})
        wanted = request.input
        outputs = [
            sequence.outputs if sequence.vector is None else Outputs(dense=sequence.vector) for sequence in sequences
        ]
        if isinstance(wanted, ScoreInput):
            num_queries = len(wanted.queries)
            scores = pair_scores(self._similarity, outputs[:num_queries], outputs[num_queries:])
            return Finish(result=ScoreOutput(scores=scores), usage=usage)
        result = as_output(outputs, dimensions=wanted.dimensions, normalizes=self._encoder.normalizes)
        return Finish(result=result, usage=usage)

    def stats(self) -> Mapping[str, float]:
        """See `Family.metrics` in plugin.py."""
        return {
            "embedding_inputs_total": self._num_inputs,
            "embedding_tokens_total": self._num_tokens,
            "embedding_padding_tokens_total": self._num_padding,
        }

    def close(self) -> None:
        """See `StepModel`."""
        if self._flights is not None:
            self._flights.close()
        if self._parts is not None:
            self._parts.close()
        self._encoder.close()

    def _step_dense(self, sequences: Sequence[EmbeddingSequence]) -> list[Outcome[AnyOutput]]:
        return _keep(sequences, (self._parts or self._encoder).embed(*texts_of(sequences)))

    def _start_dense(
        self, sequences: Sequence[EmbeddingSequence], flights: Flights[EmbeddingSequence]
    ) -> list[Outcome[AnyOutput]]:
        try:
            vectors = self._encoder.begin(*texts_of(sequences))
        except RuntimeError:
            flights.check()
            raise
        flights.start(sequences, vectors)
        for sequence in sequences:
            sequence.is_flying = True
        return [_UNDER_WAY] * len(sequences)

    def _keep_each(
        self, sequences: Sequence[EmbeddingSequence], vectors: NDArray[np.float32]
    ) -> list[Outcome[AnyOutput]]:
        """As `_keep`; what is not finite is computed again alone, as a broken text may have broken its neighbours."""
        outcomes = _keep(sequences, vectors)
        if len(sequences) == 1:
            return outcomes
        return [
            _keep([sequence], self._encoder.embed(*texts_of([sequence])))[0] if outcome.error else outcome
            for sequence, outcome in zip(sequences, outcomes, strict=True)
        ]

    def _step_any(self, sequences: Sequence[EmbeddingSequence]) -> list[Outcome[AnyOutput]]:
        inputs = [
            EncoderInput(
                token_ids=sequence.token_ids,
                num_prompt_tokens=sequence.num_prompt_tokens,
                wanted=sequence.wanted,
                is_query=sequence.is_query,
            )
            for sequence in sequences
        ]
        found = self._encoder.encode(inputs)
        if len(inputs) > 1:  # as `_keep_each`
            found = [
                outputs if outputs.is_finite else self._encoder.encode([alone])[0]
                for alone, outputs in zip(inputs, found, strict=True)
            ]
        for sequence, outputs in zip(sequences, found, strict=True):
            sequence.outputs = outputs
        return [_DONE if outputs.is_finite else _NOT_FINITE for outputs in found]


def _keep(sequences: Sequence[EmbeddingSequence], vectors: NDArray[np.float32]) -> list[Outcome[AnyOutput]]:
    for sequence, vector in zip(sequences, vectors, strict=True):
        sequence.vector = vector
    finite: list[bool] = np.isfinite(vectors).all(axis=1).tolist()  # type: ignore[assignment]  # numpy types an axis as none
    return [_DONE if ok else _NOT_FINITE for ok in finite]


_UNDER_WAY: Outcome[AnyOutput] = Outcome()
_DONE: Outcome[AnyOutput] = Outcome(done=True)
_NOT_FINITE: Outcome[AnyOutput] = Outcome(
    done=True, error=StepFailed("The model gave no finite vector for an input of this request.")
)
