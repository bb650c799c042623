"""sentence-transformers' SparseEncoder and MultiVectorEncoder, in place of the SentenceTransformer of `Pipeline`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SparseEncoder
from sentence_transformers.multi_vector_encoder import MultiVectorEncoder
from torch import Tensor

from sixfold.core.errors import SourceError
from sixfold.plugins.embedding.encoder import Outputs
from sixfold.plugins.embedding.outputs.heads import ModuleHead, SpladeHead
from sixfold.plugins.embedding.outputs.m3 import Split
from sixfold.plugins.embedding.packing import TokenIds
from sixfold.plugins.embedding.pipeline import Pipeline
from sixfold.plugins.embedding.schema import OutputType
from sixfold.plugins.embedding.stand_in import take_body
from sixfold.plugins.embedding.tokenizing import TaskRule


class SparsePipeline(Pipeline):
    """A masked language model with SpladePooling."""

    _CLASS = SparseEncoder

    @property
    def pooling(self) -> tuple[str, ...]:
        """No dense vectors."""
        return ()

    @property
    def output_types(self) -> tuple[OutputType, ...]:
        """Weights over the vocabulary."""
        return ("sparse",)

    @property
    def similarity(self) -> str:
        """As the library's, which takes the dot product unless told otherwise."""
        return str(self._library.similarity_fn_name or "dot")

    @property
    def dimension(self) -> int:
        """Size of the vocabulary."""
        return int(self.transformer.config.vocab_size)

    def flatten(self, outputs: Outputs) -> NDArray[np.float32]:
        """With all its zeros."""
        assert outputs.sparse is not None
        vector = np.zeros(self.dimension, dtype=np.float32)
        vector[outputs.sparse.indices] = outputs.sparse.values
        return vector

    def split(self) -> Split:
        """The body, and its masked-language-model head as a sparse head."""
        model = self.transformer
        body, stand_in = take_body(model)
        pooling = cast("Any", self._modules[1])
        head = SpladeHead(
            model,
            stand_in,
            pooling=pooling.pooling_strategy,
            log_twice=pooling.activation_function == "log1p_relu",
        )
        return Split(body=body, sparse_head=head)

    def _check_modules(self) -> None:
        kinds = [type(module).__name__ for module in self._modules]
        if kinds != ["Transformer", "SpladePooling"]:
            raise SourceError(
                f"The sparse model is made of {', '.join(kinds)}; this family runs Transformer and SpladePooling."
            )


class MultiVectorPipeline(Pipeline):
    """A late-interaction model (ColBERT): token vectors, compared by their greatest similarities."""

    _CLASS = MultiVectorEncoder

    @property
    def pooling(self) -> tuple[str, ...]:
        """No dense vectors."""
        return ()

    @property
    def output_types(self) -> tuple[OutputType, ...]:
        """A vector for each token."""
        return ("multi_vector",)

    @property
    def similarity(self) -> str:
        """Sum over the query's tokens of the greatest dot product with a document's."""
        return "maxsim"

    @property
    def dimension(self) -> int:
        """Values in a token's vector."""
        return int(self._library.get_embedding_dimension() or 0)

    def reference(self, sequence: TokenIds) -> Tensor:
        """The library's vectors of a document's tokens that count, joined."""
        features = self._features(sequence)
        vectors: Tensor = features["token_embeddings"][0][features["attention_mask"][0].bool()]
        return vectors.float().cpu().flatten()

    def flatten(self, outputs: Outputs) -> NDArray[np.float32]:
        """All vectors joined."""
        assert outputs.multi_vector is not None
        return outputs.multi_vector.ravel()

    def split(self) -> Split:
        """The transformer, and the modules behind it as a head."""
        mask = self._mask
        skipped: list[int] = mask._skiplist_ids.tolist() if mask._skiplist_ids is not None else []
        head = ModuleHead(
            [module for module in self._modules[1:] if module is not mask],
            skipped=skipped if "document" in mask.skiplist_tasks else [],
            skips_query="query" in mask.skiplist_tasks,
            kept=mask.keep_only_token_ids or [],
        )
        return Split(body=self.transformer, multi_vector_head=head)

    @property
    def _mask(self) -> Any:
        return next(module for module in self._modules if type(module).__name__ == "MultiVectorMask")

    def _task_rules(self) -> Mapping[str, TaskRule]:
        head = self._head
        expansion = head.query_expansion
        query = TaskRule(max_tokens=head.query_length)
        if expansion is not None:
            token = expansion.get("token")
            tokenizer = head.tokenizer
            filler = tokenizer.mask_token_id if token is None else tokenizer.convert_tokens_to_ids(token)
            query = TaskRule(
                max_tokens=expansion["length"] if expansion["strategy"] == "fixed" else head.query_length,
                min_tokens=expansion["length"],
                filler=tokenizer.eos_token_id if filler is None else filler,
            )
        return {"query": query, "document": TaskRule(max_tokens=head.document_length)}

    def _check_modules(self) -> None:
        kinds = [type(module).__name__ for module in self._modules]
        if kinds[0] != "Transformer" or not {"MultiVectorMask"} <= set(kinds[1:]) <= {
            "Dense",
            "MultiVectorMask",
            "Normalize",
        }:
            raise SourceError(
                f"The multi-vector model is made of {', '.join(kinds)}; this family runs Transformer, MultiVectorMask and "
                "any of Dense and Normalize."
            )
        expansion = self._head.query_expansion
        if expansion is not None and not expansion["attend"]:
            raise SourceError(
                "The model's queries are expanded by tokens that other tokens do not see (query_expansion attend=False); "
                "only attend=True is supported."
            )
