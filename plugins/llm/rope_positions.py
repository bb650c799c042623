"""Positions of models that place the parts of an image in several directions at once (M-RoPE)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sixfold.plugins.llm.prompt_images import PromptImage
from sixfold.plugins.llm.sampling import IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class RopePositions:
    """What rotates the tokens of one sequence; where they are in the cache is another matter.

    Attributes:
        prompt: [directions, tokens of the prompt].
        offset: What a generated token's place in the sequence differs from its position by, in all directions.
    """

    prompt: IntArray
    offset: int

    def span(self, begin: int, end: int) -> IntArray:
        """[directions, tokens] of the places ``begin`` to ``end``."""
        generated = np.arange(max(begin, self.prompt.shape[1]), end) + self.offset
        known = self.prompt[:, begin:end]
        return np.concatenate([known, np.broadcast_to(generated, (len(known), len(generated)))], axis=1)


def positions_of_step(
    ropes: Sequence[RopePositions | None], begins: Sequence[int], ends: Sequence[int]
) -> IntArray | None:
    """[directions, tokens] of a step's spans in order; None if no sequence has other positions than its places.

    A sequence without directions of its own has its places in all of them.
    """
    num_directions = next((len(rope.prompt) for rope in ropes if rope is not None), 0)
    if not num_directions:
        return None
    spans = [
        np.broadcast_to(np.arange(begin, end), (num_directions, end - begin)) if rope is None else rope.span(begin, end)
        for rope, begin, end in zip(ropes, begins, ends, strict=True)
    ]
    return np.concatenate(spans, axis=1)


class RopeIndex:
    """A model's own rule for the positions of a prompt with images.

    Args:
        index: transformers' ``get_rope_index``; it reads nothing but the model's config.
        image_token_id: What features stand in the place of.
    """

    def __init__(self, index: Callable[..., Any], image_token_id: int) -> None:
        self._index = index
        self._image_token_id = image_token_id
        self._arguments = frozenset(inspect.signature(index).parameters)

    @classmethod
    def of_model(cls, model: Any) -> RopeIndex | None:
        """The rule of a transformers model; None if its positions have one direction."""
        rope: dict[str, Any] = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
        index = getattr(getattr(model, model.base_model_prefix), "get_rope_index", None)
        return cls(index, int(model.config.image_token_id)) if "mrope_section" in rope and index is not None else None

    def positions(self, token_ids: Sequence[int], images: Sequence[PromptImage]) -> RopePositions:
        """Of a prompt whose images have their inputs yet. [pool]"""
        ids = torch.tensor([token_ids])
        given = [image.inputs for image in images if image.inputs is not None]
        inputs = {name: torch.cat([each[name] for each in given]) for name in given[0] if name in self._arguments}
        found, offset = self._index(input_ids=ids, mm_token_type_ids=self.kinds(ids), **inputs)
        prompt: IntArray = found[:, 0].numpy()
        return RopePositions(prompt=prompt, offset=int(offset.item()))

    def kinds(self, token_ids: torch.Tensor) -> torch.Tensor:
        """``mm_token_type_ids``: 1 where a token stands for an image, else 0."""
        return (token_ids == self._image_token_id).to(torch.int32)
