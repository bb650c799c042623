"""The two further heads of BGE-M3 and models like it, which keep them in files beside the transformer."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import nn

from sixfold.core.errors import SourceError
from sixfold.plugins.embedding.outputs.heads import ColbertHead, MultiVectorHead, SparseHead, TokenWeightHead

_SPARSE_FILE, _COLBERT_FILE = "sparse_linear.pt", "colbert_linear.pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A model taken apart: the body that runs packed, and heads over its hidden states."""

    body: Any
    sparse_head: SparseHead | None = None
    multi_vector_head: MultiVectorHead | None = None


class Heads(TypedDict, total=False):
    """The heads of a `Split`."""

    sparse_head: SparseHead
    multi_vector_head: MultiVectorHead


def m3_heads(path: Path, library: Any) -> Heads:
    """The heads that lie in the model's folder.

    Args:
        path: The model's folder.
        library: The loaded SentenceTransformer.

    Raises:
        SourceError: A file holds no linear layer of the model's size.
    """
    found: Heads = {}
    if (path / _SPARSE_FILE).is_file():
        tokenizer = library.tokenizer
        special = (tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
        found["sparse_head"] = TokenWeightHead(
            _linear(path / _SPARSE_FILE, library),
            vocabulary_size=library[0].auto_model.get_input_embeddings().num_embeddings,
            unused={token for token in special if token is not None},
        )
    if (path / _COLBERT_FILE).is_file():
        found["multi_vector_head"] = ColbertHead(_linear(path / _COLBERT_FILE, library))
    return found


def _linear(file: Path, library: Any) -> nn.Linear:
    parameter = next(library.parameters())
    try:
        # Weights only: a pickle may hold nothing but tensors.
        weights = torch.load(file, map_location=parameter.device, weights_only=True)
        layer = nn.Linear(weights["weight"].shape[1], weights["weight"].shape[0], device=parameter.device)
        layer.load_state_dict(weights)
    except (RuntimeError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise SourceError(f"{file.name} of the model holds no linear layer: {error} Pull it again.") from error
    return layer.to(parameter.dtype).eval()
