"""Proves that a model which reads images computes here what the stock model computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sixfold.core.errors import ConfigError
from sixfold.plugins.llm.decoder import Decoder
from sixfold.plugins.llm.image_placer import place_image
from sixfold.plugins.llm.image_processor import ImageProcessor
from sixfold.plugins.llm.prompt_images import PromptImage
from sixfold.plugins.llm.rope_positions import RopeIndex, RopePositions
from sixfold.plugins.llm.vision import ImageEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionCheck:
    """A prompt with an image, and the stock model's answer to it.

    Attributes:
        token_ids: The prompt.
        image: Not encoded.
        inputs: Of the image.
        logits: [vocabulary] after the prompt.
        rope: The prompt's positions, if they are not its places.
    """

    token_ids: list[int]
    image: PromptImage
    inputs: Mapping[str, Tensor]
    logits: Tensor
    rope: RopePositions | None

    @classmethod
    def of_stock(
        cls, model: Any, processor: ImageProcessor, text_ids: Sequence[int], image_token_id: int
    ) -> VisionCheck:
        """Asks the stock model.

        Args:
            model: Not changed yet.
            processor: The model's own.
            text_ids: What stands around the image.
            image_token_id: What its features stand in the place of.
        """
        processed = processor.process(_check_picture(), detail="low")
        text = [token_id for token_id in text_ids if token_id != image_token_id]
        before, after = text[: len(text) // 2], text[len(text) // 2 :]
        token_ids = [*before, *processed.token_ids, *after]
        image = place_image(processed, len(before), image_token_id, content=b"check")
        inputs = {name: value.to(model.device) for name, value in processed.inputs.items()}
        index, rope = RopeIndex.of_model(model), None
        if index is not None:
            rope = index.positions(token_ids, [image])
            inputs["mm_token_type_ids"] = index.kinds(torch.tensor([token_ids], device=model.device))
        with torch.inference_mode():
            ids = torch.tensor([token_ids], device=model.device)
            logits: Tensor = model(input_ids=ids, use_cache=False, **inputs).logits[0, -1]
        return cls(token_ids=token_ids, image=image, inputs=processed.inputs, logits=logits, rope=rope)

    def answer(self, decoder: Decoder, encoder: ImageEncoder, *, model_name: str) -> Tensor:
        """[vocabulary], the finished runtime's logits after the prompt, computed in chunks.

        Raises:
            ConfigError: The cache has no room for an image.
        """
        self.image.encoding = Future()
        with torch.inference_mode():
            self.image.encoding.set_result(encoder.encode([self.inputs]))
        first = (self.image.start + self.image.end) // 2  # within the image
        chunks = (first, len(self.token_ids) - first)
        logits = decoder.run([self.token_ids], chunks, images=(self.image,), rope=self.rope)
        if logits is None:
            raise ConfigError(
                f"models.{model_name}.options.kv_cache_bytes: room for {decoder.cache.num_tokens} tokens is too little for "
                f"an image of {self.image.end - self.image.start}. Set "
                f"{len(self.token_ids) * decoder.cache.num_bytes // decoder.cache.num_tokens} or more."
            )
        return logits[0]


def _check_picture() -> Image.Image:
    """All shades of two colours: a picture in one colour might hide that rows and columns are mixed up."""
    across, down = Image.linear_gradient("L").rotate(90), Image.linear_gradient("L")
    return Image.merge("RGB", (across, down, Image.new("L", across.size, 90)))
