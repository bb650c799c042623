"""What crosses the process border for a picture."""

from __future__ import annotations

from typing import Literal

import msgspec

Quality = Literal["low", "medium", "high"]
OutputFormat = Literal["png", "jpeg", "webp"]
PreviewKind = Literal["decode", "linear"]
Operation = Literal["generate", "edit", "vary"]


class LoraChoice(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that a request chooses, and its share."""

    name: str
    scale: float = 1.0


class ImageInput(msgspec.Struct, frozen=True, kw_only=True):
    """One request for pictures.

    Attributes:
        operation: Draw, change an image, or vary one.
        prompt: What to draw; empty for a variation.
        images: Encoded uploads to start from.
        mask: An encoded image whose transparent parts are to be drawn anew.
        n: How many pictures.
        size: WIDTHxHEIGHT; None leaves it to the model or the input image.
        quality: Chooses the number of steps, if that is not given.
        output_format: Of the pictures.
        output_compression: 0 to 100, for jpeg and webp; None for the encoder's default.
        partial_images: How many intermediate pictures to send.
        preview: How they are made; None leaves it to the model's options.
        seed: Of the first picture, the next ones follow it; None draws one.
        negative_prompt: What not to draw.
        num_inference_steps: Instead of the quality's.
        guidance_scale: Instead of the model's.
        strength: How much of the input image is drawn anew.
        scheduler: Class name of a diffusers scheduler.
        row_cache_threshold: See `ImageOptions`; a negative value turns caching off.
        lora: Adapters to draw with, in order; () draws with the model as it is.
        exact: Runs alone, for a result that does not depend on any other request to the last bit.
    """

    operation: Operation = "generate"
    prompt: str = ""
    images: tuple[bytes, ...] = ()
    mask: bytes | None = None
    n: int = 1
    size: str | None = None
    quality: Quality = "medium"
    output_format: OutputFormat = "png"
    output_compression: int | None = None
    partial_images: int = 0
    preview: PreviewKind | None = None
    seed: int | None = None
    negative_prompt: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    strength: float | None = None
    scheduler: str | None = None
    row_cache_threshold: float | None = None
    lora: tuple[LoraChoice, ...] = ()
    exact: bool = False


class StepProgress(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    """One step of a picture is done."""

    image_index: int
    step: int
    num_steps: int


class PartialImage(msgspec.Struct, frozen=True, kw_only=True, tag="partial"):
    """A picture as far as it is drawn."""

    image_index: int
    partial_index: int
    data: bytes


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """A finished picture, encoded."""

    data: bytes
    seed: int


class ImageResult(msgspec.Struct, frozen=True, kw_only=True, tag="result"):
    """All pictures of a request, in order."""

    pictures: tuple[Picture, ...]
    width: int
    height: int
    num_inference_steps: int


ImageOutput = StepProgress | PartialImage | ImageResult
