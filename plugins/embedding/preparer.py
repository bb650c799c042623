"""From a request to sequences: what an embedding model refuses, its prompts, and its tokens."""

from __future__ import annotations

from collections.abc import Sequence

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.embedding.encoder import Encoder
from sixfold.plugins.embedding.pieces import Piece
from sixfold.plugins.embedding.rerank.schema import ScoreInput, check_num_documents
from sixfold.plugins.embedding.schema import EmbeddingInput
from sixfold.plugins.embedding.sequence import DENSE, EmbeddingSequence
from sixfold.plugins.embedding.tokenizing import Prompts, TextTokenizer


class Preparer:
    """Makes the sequences of one model. Called by several pool threads at once; holds no state that changes.

    Args:
        encoder: Asked for what it can make, not run.
        tokenizer: With the model's limits.
        prompts: The model's own.
        max_inputs: Most inputs in one request.
    """

    def __init__(self, encoder: Encoder, tokenizer: TextTokenizer, prompts: Prompts, *, max_inputs: int) -> None:
        self._encoder = encoder
        self._output_types = encoder.output_types
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._max_inputs = max_inputs

    def prepare(self, wanted: EmbeddingInput | ScoreInput, piece: Piece) -> list[EmbeddingSequence]:
        """Tokenizes one piece.

        Raises:
            ContextLengthExceeded: An input is over the model's limit and must not be cut.
            InvalidRequest: Unknown prompt, wrong token ids, too many inputs or dimensions.
        """
        if isinstance(wanted, ScoreInput):
            check_num_documents(wanted, self._max_inputs)
            return [*self._queries(wanted, piece), *self._documents(wanted, piece)]
        self._check(wanted)
        prompt = self._prompts.choose(wanted)
        if wanted.token_ids:
            rows = wanted.token_ids[piece.start : piece.stop]
            found = self._tokenizer.check_ids(rows, first_index=piece.start, truncate_tokens=wanted.truncate_tokens)
            is_query = wanted.input_type == "query"
            return [EmbeddingSequence(ids, 0, wanted.output_types, is_query) for ids in found]
        return self._encoded(wanted.texts, piece, wanted, prompt, "input")

    def _queries(self, wanted: ScoreInput, piece: Piece) -> list[EmbeddingSequence]:
        how = EmbeddingInput(
            input_type="query", truncate_tokens=wanted.truncate_tokens, output_types=self._output_types[:1]
        )
        return self._encoded(wanted.queries, piece, how, self._prompts.choose(how), wanted.query_field)

    def _documents(self, wanted: ScoreInput, piece: Piece) -> list[EmbeddingSequence]:
        """The documents come behind the queries in the order of the sequences."""
        num_queries = len(wanted.queries)
        mine = Piece(max(piece.start - num_queries, 0), max(piece.stop - num_queries, 0))
        limit = wanted.truncate_tokens
        if limit is None and wanted.max_document_tokens is not None:
            limit = wanted.max_document_tokens + self._tokenizer.num_special
        how = EmbeddingInput(input_type="document", truncate_tokens=limit, output_types=self._output_types[:1])
        return self._encoded(wanted.documents, mine, how, self._prompts.choose(how), wanted.documents_field)

    def _encoded(
        self, texts: Sequence[str], piece: Piece, how: EmbeddingInput, prompt: str, field: str
    ) -> list[EmbeddingSequence]:
        mine = texts[piece.start : piece.stop]
        if not mine:
            return []
        found = self._tokenizer.encode_texts(
            [prompt + text for text in mine] if prompt else mine,
            first_index=piece.start,
            truncate_tokens=how.truncate_tokens,
            field=field,
            task=how.input_type,
        )
        skipped = self._tokenizer.count_prompt(prompt) if prompt and not self._encoder.pools_prompt else 0
        return [EmbeddingSequence(ids, skipped, how.output_types, how.input_type == "query") for ids in found]

    def _check(self, wanted: EmbeddingInput) -> None:
        if wanted.items:
            raise InvalidRequest("The model embeds texts, no images.", param="input")
        if wanted.num_inputs > self._max_inputs:
            raise InvalidRequest(
                f"input has {wanted.num_inputs} items; at most {self._max_inputs} are taken. Send several requests.",
                param="input",
            )
        lacking = [kind for kind in wanted.output_types if kind not in self._output_types]
        if lacking:
            raise InvalidRequest(
                f"The model has no {lacking[0]} vectors. Send output_types with any of: "
                f"{', '.join(self._output_types)}.",
                param="output_types",
            )
        if wanted.dimensions is not None and wanted.output_types != DENSE:
            raise InvalidRequest("dimensions cuts dense vectors alone: leave it out.", param="dimensions")
        if wanted.dimensions is not None and wanted.dimensions > self._encoder.dimension:
            raise InvalidRequest(
                f"dimensions is {wanted.dimensions}; the model's vectors have {self._encoder.dimension}.",
                param="dimensions",
            )


def inputs_of(wanted: EmbeddingInput | ScoreInput) -> Sequence[str | tuple[int, ...]]:
    """All inputs in the order of their sequences."""
    return (*wanted.queries, *wanted.documents) if isinstance(wanted, ScoreInput) else wanted.texts or wanted.token_ids
