"""Puts a conversation's images into its prompt: reads them, and lets the tokens that stand for them take their place."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sixfold.core.errors import InvalidRequest
from sixfold.core.pictures import flatten, read_picture
from sixfold.plugins.llm.generation import ImagePart
from sixfold.plugins.llm.image_processor import ImageProcessor, ProcessedImage
from sixfold.plugins.llm.prompt_images import PromptImage
from sixfold.plugins.llm.refusals import check_image_count
from sixfold.plugins.llm.rope_positions import RopeIndex, RopePositions


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedPrompt:
    """A prompt with images.

    Attributes:
        token_ids: With all tokens that stand for them.
        images: In order.
        rope: Its positions; None if they are its places.
    """

    token_ids: list[int]
    images: tuple[PromptImage, ...] = ()
    rope: RopePositions | None = None


class ImagePlacer:
    """Of one model. Called by several pool threads at once; holds no state that changes.

    Args:
        processor: The model's own.
        image_token_id: What the features of images stand in the place of.
        max_images: Of a request.
        max_pixels: Of an image.
        rope_index: The model's rule for positions of several directions.

    Attributes:
        max_images: One, where the processor makes of several images otherwise than of each.
    """

    def __init__(
        self,
        processor: ImageProcessor,
        *,
        image_token_id: int,
        max_images: int,
        max_pixels: int,
        rope_index: RopeIndex | None = None,
    ) -> None:
        self._processor = processor
        self._image_token_id = image_token_id
        self.max_images = max_images if processor.treats_images_alone() else 1
        self._max_pixels = max_pixels
        self._rope_index = rope_index

    def place(self, prompt_ids: Sequence[int], parts: Sequence[ImagePart], *, num_holders: int) -> PlacedPrompt:
        """The prompt with all tokens that stand for its images.

        Args:
            prompt_ids: With one image token for each image.
            parts: The images in order.
            num_holders: Sequences that will have them.

        Raises:
            InvalidRequest: An image can't be read, there are too many, or the template did not write one mark for each.
        """
        check_image_count([part.param for part in parts], self.max_images)
        if prompt_ids.count(self._image_token_id) != len(parts):
            raise InvalidRequest(
                f"The model's chat template wrote {prompt_ids.count(self._image_token_id)} marks for {len(parts)} images: "
                "send images in turns of the user only.",
                param="messages",
            )
        remaining = iter(parts)
        placed: list[int] = []
        images: list[PromptImage] = []
        for token_id in prompt_ids:
            if token_id != self._image_token_id:
                placed.append(token_id)
                continue
            part = next(remaining)
            processed = self._read(part)
            image = place_image(
                processed, len(placed), self._image_token_id, content=_content(part), num_holders=num_holders
            )
            images.append(image)
            placed += processed.token_ids
        rope = None if self._rope_index is None else self._rope_index.positions(placed, images)
        return PlacedPrompt(token_ids=placed, images=tuple(images), rope=rope)

    def _read(self, part: ImagePart) -> ProcessedImage:
        picture = flatten(read_picture(part.data, param=part.param, max_pixels=self._max_pixels))
        return self._processor.process(picture, detail=part.detail, param=part.param)


def place_image(
    processed: ProcessedImage, start: int, image_token_id: int, *, content: bytes, num_holders: int = 1
) -> PromptImage:
    """An image at the position ``start`` of a prompt."""
    token_ids = np.array(processed.token_ids, dtype=np.int64)
    return PromptImage(
        start=start,
        end=start + len(token_ids),
        positions=start + np.flatnonzero(token_ids == image_token_id),
        content=content,
        inputs=processed.inputs,
        num_holders=num_holders,
    )


def _content(part: ImagePart) -> bytes:
    """Equal for equal files that are looked at alike."""
    return hashlib.blake2b(part.data, digest_size=16, person=b"low" if part.detail == "low" else b"").digest()
