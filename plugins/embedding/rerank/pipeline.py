"""sentence-transformers' own CrossEncoder of a model folder, and what it says about labels, limits and activation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder
from torch import Tensor, nn

from sixfold.core.errors import ConfigError, SourceError
from sixfold.plugins.embedding.forward import position_offset
from sixfold.plugins.embedding.rerank.pairs import PairTokenizer
from sixfold.plugins.embedding.tokenizing import plain_copy


class CrossPipeline:
    """A sequence classifier with one label, as the library loaded it.

    Args:
        path: The model's folder.
        device: "cpu" or "cuda:N".
        dtype: Of the weights.

    Raises:
        SourceError: The folder is no such model, or needs Python code of its own.
    """

    def __init__(self, path: Path, device: str, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._path = path
        self._device = device
        self._library = self._load()
        kinds = [type(module).__name__ for module in self._library.children()]
        if kinds != ["Transformer"] or "message" in self._head.modality_config:
            raise SourceError(
                f"The cross-encoder is made of {', '.join(kinds)}; this family runs a single sequence classifier without "
                "a chat template (BertForSequenceClassification and its like)."
            )
        if self._library.num_labels != 1:
            raise SourceError(
                f"The model sorts into {self._library.num_labels} classes; rerank and score need a model with one label."
            )
        self.num_parameters = sum(parameter.numel() for parameter in self._library.parameters())

    @property
    def classifier(self) -> Any:
        """The transformers model, body and head."""
        return self._head.model

    @property
    def activation(self) -> nn.Module:
        """What makes a score of a logit."""
        return cast("nn.Module", self._library.activation_fn)

    @property
    def pad_token_id(self) -> int:
        """Id for padding; 0 where the tokenizer has none (it is masked anyway)."""
        return int(self._head.tokenizer.pad_token_id or 0)

    @property
    def takes_types(self) -> bool:
        """Whether the tokenizer makes segment ids."""
        return "token_type_ids" in self._head.tokenizer.model_input_names

    def reload(self) -> None:
        """Reads the weights again, after a trial changed the modules."""
        self._library = self._load()

    def logits(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """The library's own logits, each pair alone: [pairs], on the CPU in float32."""
        found = [
            self._library.predict([pair], activation_fn=nn.Identity(), convert_to_tensor=True, show_progress_bar=False)
            for pair in pairs
        ]
        return torch.cat(found).float().cpu()

    def token_ids(self, pair: tuple[str, str]) -> NDArray[np.int64]:
        """The library's own token ids of one pair, cut to the model's limit."""
        prompt = self._prompt or None
        features = self._library.preprocess([pair], prompt=prompt)
        found: NDArray[np.int64] = features["input_ids"][0].cpu().numpy()
        return found

    def tokenizer(self, max_seq_length: int | None, *, truncates: bool) -> PairTokenizer:
        """An own tokenizer with the model's limits.

        Args:
            max_seq_length: The operator's shorter limit.
            truncates: Whether longer pairs are cut when a request says nothing.

        Raises:
            ConfigError: The operator's limit is above the model's.
            SourceError: The model has no fast tokenizer.
        """
        tokenizer = self._head.tokenizer
        if not getattr(tokenizer, "is_fast", False):
            raise SourceError("The model has no tokenizer.json; it is not supported.")
        longest = self._max_tokens()
        if max_seq_length is not None and max_seq_length > longest:
            raise ConfigError(f"options.max_seq_length is {max_seq_length}; the model takes at most {longest} tokens.")
        return PairTokenizer(
            plain_copy(tokenizer),
            max_tokens=max_seq_length or longest,
            truncation_side=tokenizer.truncation_side,
            prompt=self._prompt,
            truncates=truncates,
        )

    @property
    def _head(self) -> Any:
        return self._library[0]

    @property
    def _prompt(self) -> str:
        name = self._library.default_prompt_name
        return self._library.prompts.get(name) or "" if name is not None else ""

    def _max_tokens(self) -> int:
        limits: list[int] = []
        if self._library.max_seq_length is not None:
            limits.append(int(self._library.max_seq_length))
        positions = getattr(self.classifier.config, "max_position_embeddings", None)
        if isinstance(positions, int) and positions > 0:
            limits.append(positions - position_offset(self.classifier))
        return min(limits, default=512)

    def _load(self) -> Any:
        try:
            library = CrossEncoder(
                str(self._path),
                device=self._device,
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"dtype": self.dtype},
            )
        except (OSError, ValueError, ImportError) as error:
            raise SourceError(
                f"sentence-transformers can't load the cross-encoder: {error} "
                "A model that needs Python code of its own can't be served; else pull it again."
            ) from error
        library.eval()
        return library
