"""What clients send to the rerank and score routes, and what crosses the process border for it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.embedding.schema import TRUNCATE_TO_LIMIT


class ScoreInput(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Texts to score against each other.

    Attributes:
        queries: One query for all documents, or one for each.
        documents: In the client's order.
        query_field: Name of the queries in the client's body, for messages.
        documents_field: Name of the documents in the client's body, for messages.
        truncate_tokens: Longer inputs are cut to this many tokens; `TRUNCATE_TO_LIMIT` for the model's limit; None takes
            the model's setting, which usually refuses what is over the limit.
        max_document_tokens: Documents are cut to this many tokens of their own first; None leaves them whole.
        raw_scores: Leaves out the model's activation function.
        by_similarity: Whether an embedding model may answer by the similarity of its vectors; None takes its setting.
    """

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    query_field: str = "query"
    documents_field: str = "documents"
    truncate_tokens: int | None = None
    max_document_tokens: int | None = None
    raw_scores: bool = False
    by_similarity: bool | None = None

    def query_of(self, index: int) -> str:
        """The query for the document of this index."""
        return self.queries[index if len(self.queries) > 1 else 0]


class ScoreOutput(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One score a document, in the client's order; higher is more relevant."""

    scores: tuple[float, ...]


def check_num_documents(wanted: ScoreInput, max_inputs: int) -> None:
    """Bounds a request.

    Raises:
        InvalidRequest: It has more documents than ``max_inputs``.
    """
    if len(wanted.documents) > max_inputs:
        raise InvalidRequest(
            f"{wanted.documents_field} has {len(wanted.documents)} items; at most {max_inputs} are taken. Send several "
            "requests.",
            param=wanted.documents_field,
        )


def _with_text(text: str) -> str:
    if not text:
        raise ValueError("must not be empty: leave the item out, or send its text")
    return text


Text = Annotated[str, AfterValidator(_with_text)]


class TextDocument(BaseModel):
    """A document as an object, as Cohere's and Jina's clients may send it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    text: Text
    """The document's text."""


class _Asked(BaseModel):
    """What all these bodies have in common."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    truncate_prompt_tokens: Annotated[int, Field(ge=TRUNCATE_TO_LIMIT)] | None = None
    """Cuts a longer input to this many tokens, -1 for the model's limit; without it, it is an error unless the model's
    ``truncate`` option is on. Query and document of a cross-encoder count together, and the longer one is cut first."""
    rerank_by_similarity: bool | None = None
    """Lets an embedding model answer by the similarity of its vectors; by default as the model's option says."""
    user: str | None = None
    """The client's own name for its end user; without effect."""


class RerankBody(_Asked):
    """The JSON body of the rerank routes: with ``documents`` in the form of Cohere, Jina and vLLM, with ``texts`` in that
    of text-embeddings-inference."""

    model: str | None = None
    """Name or alias of the model; may be left out where one model alone reranks."""
    query: Text
    """What the documents shall be relevant to."""
    documents: Annotated[tuple[Text | TextDocument, ...], Field(min_length=1, strict=False)] | None = None
    """Texts, or objects that hold their text under ``text``."""
    top_n: Annotated[int, Field(ge=1)] | None = None
    """How many of the most relevant documents the answer names; all if None or if there are not so many."""
    return_documents: bool = False
    """Puts each document into its result."""
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = None
    """Documents are cut to this many tokens (Cohere's v2)."""
    rank_fields: Annotated[tuple[Literal["text"], ...], Field(min_length=1, strict=False)] | None = None
    """Fields of document objects to rank by (Cohere's v1): only ``["text"]`` is there."""
    max_chunks_per_doc: Literal[1] | None = None
    """Cohere's v1 cuts long documents to chunks; here a document is always one chunk."""
    priority: Literal[0] | None = None
    """Cohere's v2; send the header ``x-priority`` instead."""
    raw_scores: bool = False
    """Scores without the model's activation function."""
    texts: Annotated[tuple[Text, ...], Field(min_length=1, strict=False)] | None = None
    """The documents in the form of text-embeddings-inference, whose answer is a bare list."""
    return_text: bool = False
    """Puts each of ``texts`` into its result."""
    truncate: bool | None = None
    """As ``truncate_prompt_tokens: -1``."""
    truncation_direction: Literal["Right", "right"] | None = None
    """The side to cut: only the right one, as sentence-transformers does."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.documents is None and self.texts is None:
            raise InvalidRequest(
                "Missing required parameter 'documents', a list of texts or of objects with a text.",
                param="documents",
                code="missing_required_parameter",
            )
        if self.documents is not None and self.texts is not None:
            raise InvalidRequest("Send documents or texts, not both.", param="texts")
        if self.truncate is not None and self.truncate_prompt_tokens is not None:
            raise InvalidRequest("Send truncate or truncate_prompt_tokens, not both.", param="truncate")
        return self

    @property
    def contents(self) -> tuple[str, ...]:
        """The documents' texts."""
        return self.texts or tuple(item if isinstance(item, str) else item.text for item in self.documents or ())

    def request_input(self) -> ScoreInput:
        """The request as it goes to the model."""
        return ScoreInput(
            queries=(self.query,),
            documents=self.contents,
            documents_field="documents" if self.texts is None else "texts",
            truncate_tokens=TRUNCATE_TO_LIMIT if self.truncate else self.truncate_prompt_tokens,
            max_document_tokens=self.max_tokens_per_doc,
            raw_scores=self.raw_scores,
            by_similarity=self.rerank_by_similarity,
        )


def _texts(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


_Texts = Text | Annotated[tuple[Text, ...], Field(min_length=1, strict=False)]


class ScoreBody(_Asked):
    """The JSON body of ``POST /v1/score`` in vLLM's form."""

    model: str
    """Name or alias of the model."""
    text_1: _Texts
    """One text, or a list."""
    text_2: _Texts
    """One text, or a list: each is scored against the one of ``text_1``, or against that of the same place."""
    raw_scores: bool = False
    """Scores without the model's activation function."""

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        first, second = len(_texts(self.text_1)), len(_texts(self.text_2))
        if first not in (1, second):
            raise InvalidRequest(
                f"text_1 has {first} texts and text_2 has {second}: send one text_1 for all, or one for each text_2.",
                param="text_1",
            )
        return self

    def request_input(self) -> ScoreInput:
        """The request as it goes to the model."""
        return ScoreInput(
            queries=_texts(self.text_1),
            documents=_texts(self.text_2),
            query_field="text_1",
            documents_field="text_2",
            truncate_tokens=self.truncate_prompt_tokens,
            raw_scores=self.raw_scores,
            by_similarity=self.rerank_by_similarity,
        )
