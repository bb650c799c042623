"""Pictures as OpenAI's clients read them."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class PictureObject(TypedDict):
    """One picture: its bytes, or where they are for an hour."""

    b64_json: NotRequired[str]
    url: NotRequired[str]
    seed: int


class InputDetails(TypedDict):
    """What the prompt's tokens stand for."""

    text_tokens: int
    image_tokens: int


class ImageUsage(TypedDict):
    """Tokens of the prompt, latent positions of images."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails


class ImagesObject(TypedDict):
    """The answer to all routes that draw, unless it is streamed."""

    created: int
    data: list[PictureObject]
    background: Literal["opaque"]
    output_format: str
    quality: str
    size: str
    num_inference_steps: int
    usage: ImageUsage
