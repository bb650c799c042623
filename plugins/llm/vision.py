"""The vision tower of a model that reads images: a lane beside the steps, so that decoding goes on while it looks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, cast

import torch
from torch import Tensor

from sixfold.core.rendezvous.calls import CallRules, ModuleCall
from sixfold.core.rendezvous.lane import Lane
from sixfold.plugins.llm.prompt_images import PromptImage, num_visible

# A forward's activations are some hundred times as many bytes as its image tokens; this bounds them to about a GiB.
_MAX_TOKENS = 8192
_RULES = CallRules(row_lists=frozenset({"images"}))


class ImageEncoder:
    """The vision tower and what fits its output to the decoder, as one function.

    Args:
        model: The whole transformers model; its `get_image_features` is used.
        device: Where it is.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self._encode: Callable[..., Any] = getattr(model, model.base_model_prefix).get_image_features
        self._arguments = frozenset(inspect.signature(self._encode).parameters)
        self._device = device

    def encode(self, images: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
        """The features of images whose inputs agree in shape: [tokens, hidden size] each.

        Every input has its images along the first axis, whatever an image's share of it is, and the answer is a list with
        an entry an image: so the models' own batches are made.
        """
        names = [name for name in images[0] if name in self._arguments]
        inputs = {name: torch.cat([image[name] for image in images]).to(self._device) for name in names}
        found: Any = self._encode(**inputs, return_dict=True).pooler_output
        features = [cast("Tensor", each).flatten(0, -2) for each in found]
        if len(features) != len(images):
            raise ValueError(f"The vision tower gave {len(features)} answers to {len(images)} images.")
        return features


class VisionTower:
    """Computes the features of images, those of several requests together where their inputs are of one shape.

    Args:
        encoder: Computes them.
        device: Where it is.
        num_threads: CPU threads of its forwards.
    """

    def __init__(self, encoder: ImageEncoder, device: torch.device, *, num_threads: int) -> None:
        self._encoder = encoder
        self._lane = Lane("vision", device, num_threads=num_threads, max_units=_MAX_TOKENS)
        self._wake: Callable[[], None] = lambda: None

    def attach(self, wake: Callable[[], None]) -> None:
        """Takes what makes the device thread look again when an image is encoded."""
        self._wake = wake

    def num_visible(self, images: Sequence[PromptImage], begin: int) -> int | None:
        """See `prompt_images.num_visible`. Images that will be needed and were not asked for yet are begun. [device]"""
        for image in images:
            if image.encoding is None and image.positions[-1] >= begin:
                self._begin(image)
        return num_visible(images, begin)

    def release(self, images: Sequence[PromptImage]) -> None:
        """A sequence lets its images go; what nobody waits for is not computed. [device]"""
        for image in images:
            image.num_holders -= 1
            if image.num_holders == 0:
                if image.encoding is not None:
                    image.encoding.cancel()
                image.inputs = image.encoding = None

    def stats(self) -> Mapping[str, float]:
        """Counters of the lane."""
        return {"images_encoded_total": self._lane.num_calls, "image_forwards_total": self._lane.num_forwards}

    def close(self) -> None:
        """Ends the lane."""
        self._lane.close()

    def _begin(self, image: PromptImage) -> None:
        assert image.inputs is not None
        inputs = image.inputs
        call = ModuleCall(
            function=self._encoder.encode,
            arguments={"images": [inputs]},
            rows=1,
            units=len(image.positions),
            key=tuple((name, value.dtype, value.shape[1:]) for name, value in inputs.items()),
            rules=_RULES,
        )
        image.encoding = self._lane.submit(call)
        image.inputs = None  # the call has them until it is done
        image.encoding.add_done_callback(self._encoded)

    def _encoded(self, _future: Future[list[Tensor]]) -> None:
        self._wake()


NO_IMAGES: Mapping[str, float] = {"images_encoded_total": 0, "image_forwards_total": 0}
"""The counters of a model that reads text only."""
