"""sentence-transformers' own modules of a model folder, and what they say about prompts, limits and pooling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from sixfold.core.errors import ConfigError, SourceError
from sixfold.plugins.embedding.encoder import Outputs
from sixfold.plugins.embedding.forward import position_offset
from sixfold.plugins.embedding.outputs.m3 import Split, m3_heads
from sixfold.plugins.embedding.packing import TokenIds, to_tensor
from sixfold.plugins.embedding.pooling import POOLING
from sixfold.plugins.embedding.schema import OutputType
from sixfold.plugins.embedding.tokenizing import Prompts, TaskRule, TextTokenizer, plain_copy

_TAIL_MODULES = ("Dense", "Normalize", "LayerNorm", "Dropout")


class Pipeline:
    """Transformer, Pooling and a tail of simple modules, as the library loaded them.

    Args:
        path: The model's folder.
        device: "cpu" or "cuda:N".
        dtype: Of the transformer; the tail stays float32.
        prepare: Called with the transformer whenever it has been read.

    Raises:
        SourceError: The folder is no such model, or needs Python code of its own.
    """

    _CLASS: Any = SentenceTransformer

    def __init__(
        self,
        path: Path,
        device: str,
        dtype: torch.dtype,
        prepare: Callable[[nn.Module], object] = lambda _transformer: None,
    ) -> None:
        self.dtype = dtype
        self._prepare = prepare
        self._path = path
        self._device = device
        self._library = self._load()
        self._check_modules()
        self.num_parameters = sum(parameter.numel() for parameter in self._library.parameters())
        self._prepare(self.transformer)

    @property
    def transformer(self) -> Any:
        """The transformers model."""
        return self._head.auto_model

    @property
    def tail(self) -> tuple[nn.Module, ...]:
        """The modules behind pooling."""
        return self._modules[2:]

    @property
    def pooling(self) -> tuple[str, ...]:
        """Pooling modes, in the order in which their vectors are joined."""
        modes = cast("Any", self._modules[1]).pooling_mode
        return (modes,) if isinstance(modes, str) else tuple(modes)

    @property
    def pools_prompt(self) -> bool:
        """Whether a prompt's own tokens are pooled too."""
        return bool(getattr(self._modules[1], "include_prompt", True))

    @property
    def normalizes(self) -> bool:
        """Whether the vectors have length 1."""
        return type(self._modules[-1]).__name__ == "Normalize"

    @property
    def dimension(self) -> int:
        """Values in a vector."""
        return int(self._library.get_embedding_dimension() or 0)

    @property
    def similarity(self) -> str:
        """Name of the function that compares two vectors: "cosine", "dot", "euclidean" or "manhattan"."""
        return str(self._library.similarity_fn_name)

    @property
    def pad_token_id(self) -> int:
        """Id for padding; 0 where the tokenizer has none (it is masked anyway)."""
        return int(self._head.tokenizer.pad_token_id or 0)

    def reload(self) -> None:
        """Reads the weights again, after a trial changed the modules."""
        self._library = self._load()
        self._prepare(self.transformer)

    @property
    def output_types(self) -> tuple[OutputType, ...]:
        """What the library makes of a text: what `reference` can check."""
        return ("dense",)

    def reference(self, sequence: TokenIds) -> Tensor:
        """The library's own vector of one sequence: [dimension], on the CPU in float32."""
        vector: Tensor = self._features(sequence)["sentence_embedding"][0]
        return vector.float().cpu()

    def flatten(self, outputs: Outputs) -> NDArray[np.float32]:
        """What `reference` gives, from our own outputs."""
        assert outputs.dense is not None
        return outputs.dense

    def split(self) -> Split:
        """The body that is run packed, and the heads for other vectors than the dense one. Called once a load."""
        return Split(body=self.transformer, **m3_heads(self._path, self._library))

    def _features(self, sequence: TokenIds) -> Any:
        token_ids = to_tensor(sequence, self._library.device)[None]
        return self._library({"input_ids": token_ids, "attention_mask": torch.ones_like(token_ids)})

    def tokenizer(self, max_seq_length: int | None) -> TextTokenizer:
        """An own tokenizer with the model's limits.

        Args:
            max_seq_length: The operator's shorter limit.

        Raises:
            ConfigError: The operator's limit is above the model's.
            SourceError: The model has no fast tokenizer or wants a chat template.
        """
        tokenizer = self._head.tokenizer
        if "message" in self._head.modality_config or not getattr(tokenizer, "is_fast", False):
            raise SourceError(
                "The model renders its inputs through a chat template or has no tokenizer.json; neither is supported."
            )
        longest = self._max_tokens()
        if max_seq_length is not None and max_seq_length > longest:
            raise ConfigError(f"options.max_seq_length is {max_seq_length}; the model takes at most {longest} tokens.")
        return TextTokenizer(
            plain_copy(tokenizer),
            rules=self._task_rules(),
            vocabulary_size=self.transformer.get_input_embeddings().num_embeddings,
            max_tokens=max_seq_length or longest,
            truncation_side=tokenizer.truncation_side,
        )

    def prompts(self, default_name: str | None) -> Prompts:
        """The model's prompts; the operator's default name, if any, goes before the model's.

        Raises:
            ConfigError: The model has no prompt of this name.
        """
        texts = {name: text for name, text in self._library.prompts.items() if isinstance(text, str)}
        if default_name is not None and default_name not in texts:
            known = ", ".join(map(repr, texts)) or "none"
            raise ConfigError(f"options.default_prompt_name is {default_name!r}; the model has: {known}.")
        return Prompts(texts=texts, default_name=default_name or self._library.default_prompt_name)

    @property
    def _modules(self) -> tuple[nn.Module, ...]:
        return tuple(self._library.children())

    @property
    def _head(self) -> Any:
        return self._library[0]

    def _max_tokens(self) -> int:
        limits: list[int] = []
        if self._library.max_seq_length is not None:
            limits.append(int(self._library.max_seq_length))
        positions = getattr(self.transformer.config, "max_position_embeddings", None)
        if isinstance(positions, int) and positions > 0:
            # RoBERTa's tables have two places more than a sequence may use.
            limits.append(positions - position_offset(self.transformer))
        return min(limits, default=512)

    def _task_rules(self) -> Mapping[str, TaskRule]:
        """Limits and additions for queries and documents; none for most models."""
        return {}

    def _check_modules(self) -> None:
        kinds = [type(module).__name__ for module in self._modules]
        if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds[2:]) <= set(_TAIL_MODULES):
            raise SourceError(
                f"The model is made of {', '.join(kinds)}; this family runs Transformer, Pooling and then any of "
                f"{', '.join(_TAIL_MODULES)}."
            )
        if any(mode not in POOLING for mode in self.pooling):
            raise SourceError(f"The model pools by {', '.join(self.pooling)}; known are {', '.join(POOLING)}.")

    def _load(self) -> Any:
        try:
            library = self._CLASS(
                str(self._path),
                device=self._device,
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"dtype": self.dtype},
            )
        except (OSError, ValueError, ImportError) as error:
            raise SourceError(
                f"sentence-transformers can't load the model: {error} "
                "A model that needs Python code of its own can't be served; else pull it again."
            ) from error
        return library.eval()
