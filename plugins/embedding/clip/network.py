"""A transformers dual encoder with its processor: preprocessing in pool threads, both towers in the device thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from sixfold.core.errors import ContextLengthExceeded, InvalidRequest, SourceError
from sixfold.plugins.embedding.packing import TokenIds, near_equal_groups, to_tensor
from sixfold.plugins.embedding.schema import TRUNCATE_TO_LIMIT

Vectors = NDArray[np.float32]

_AUTO_MODEL: Any = AutoModel
_AUTO_PROCESSOR: Any = AutoProcessor


class DualEncoder:
    """A model with ``get_text_features`` and ``get_image_features``. The towers are used by the device thread alone.

    Args:
        path: A transformers folder, or one of sentence-transformers around it.
        device: "cpu" or "cuda:N".
        dtype: Of the weights.

    Raises:
        SourceError: The folder is no such model.
    """

    def __init__(self, path: Path, device: str, dtype: torch.dtype) -> None:
        try:
            self._model = _AUTO_MODEL.from_pretrained(path, dtype=dtype, local_files_only=True).to(device).eval()
            processor = _AUTO_PROCESSOR.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, ImportError) as error:
            raise SourceError(f"transformers can't load the model or its processor: {error} Pull it again.") from error
        self._device = torch.device(device)
        self._tokenizer: Any = processor.tokenizer
        self._image_processor: Any = processor.image_processor
        config: Any = self._model.config
        self.max_tokens: int = config.text_config.max_position_embeddings
        # SigLIP was trained on texts padded to one length, and reads the vector at its end.
        self._pads_to_limit = str(config.model_type).startswith("siglip")
        self._lock = threading.Lock()  # a tokenizer's truncation is a setting of it, not of a call
        vision = config.vision_config
        self.num_patches: int = (vision.image_size // vision.patch_size) ** 2 + 1
        self.num_parameters = sum(parameter.numel() for parameter in self._model.parameters())

    def text_units(self, num_tokens: int) -> int:
        """Tokens that the text tower computes for a text."""
        return self.max_tokens if self._pads_to_limit else num_tokens

    def tokenize(self, text: str, *, truncate_tokens: int | None, param: str) -> TokenIds:
        """Token ids of a text, special tokens included. [pool]

        Raises:
            ContextLengthExceeded: It is over the limit and must not be cut.
            InvalidRequest: The limit leaves no room.
        """
        limit = self.max_tokens
        if truncate_tokens is not None and truncate_tokens != TRUNCATE_TO_LIMIT:
            if truncate_tokens < 3:
                raise InvalidRequest("truncate_prompt_tokens must be -1 or above 2.", param="truncate_prompt_tokens")
            limit = min(limit, truncate_tokens)
        with self._lock:
            ids: list[int] = self._tokenizer(text, truncation=False)["input_ids"]
            num_tokens = len(ids)
            if num_tokens > limit and truncate_tokens is not None:
                ids = self._tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        if len(ids) > limit:
            raise ContextLengthExceeded(
                f"{param} has {num_tokens} tokens; the model takes {self.max_tokens}. Send less, or set "
                f"truncate_prompt_tokens to {TRUNCATE_TO_LIMIT} to embed its beginning.",
                param="input",
            )
        return np.array(ids, dtype=np.int64)

    def preprocess(self, image: Image.Image) -> Tensor:
        """What the vision tower reads of a picture: [channels, height, width]. [pool]"""
        pixels: Tensor = self._image_processor(images=[image], return_tensors="pt")["pixel_values"][0]
        return pixels

    @torch.inference_mode()
    def embed_texts(self, sequences: Sequence[TokenIds]) -> Vectors:
        """One vector a text: [texts, dimension], in the caller's order; texts of near-equal length run together."""
        lengths = np.array([len(ids) for ids in sequences])
        order = np.argsort(lengths, kind="stable")
        bounds = [(0, len(order))] if self._pads_to_limit else near_equal_groups(lengths[order])
        found: list[Tensor] = []
        for first, behind in bounds:
            rows = [sequences[index] for index in cast("list[int]", order[first:behind].tolist())]
            found.append(self._run_texts(rows))
        vectors = torch.cat(found).float().cpu().numpy()
        in_order = np.empty_like(vectors)
        in_order[order] = vectors
        return in_order

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Tensor]) -> Vectors:
        """One vector a picture: [images, dimension]."""
        pixels = torch.stack(list(images)).to(self._device, self._model.dtype)
        vectors: Vectors = _features(self._model.get_image_features(pixel_values=pixels)).float().cpu().numpy()
        return vectors

    def _run_texts(self, rows: Sequence[TokenIds]) -> Tensor:
        width = self.max_tokens if self._pads_to_limit else max(map(len, rows))
        token_ids = np.full((len(rows), width), self._tokenizer.pad_token_id or 0, dtype=np.int64)
        for index, row in enumerate(rows):
            token_ids[index, : len(row)] = row
        inputs = {"input_ids": to_tensor(token_ids, self._device)}
        if not self._pads_to_limit:
            is_real = np.arange(width) < np.array([[len(row)] for row in rows])
            inputs["attention_mask"] = to_tensor(is_real.astype(np.int64), self._device)
        return _features(self._model.get_text_features(**inputs))


def _features(output: Any) -> Tensor:
    """transformers 5 wraps the projected vectors; before, they were the answer itself."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features
