"""What clients send to ``/v1/images``: OpenAI's fields, and the extensions that diffusion models need."""

from __future__ import annotations

import secrets
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.image.schema import ImageInput, LoraChoice, Operation, OutputFormat, PreviewKind, Quality

_MAX_ADAPTERS = 8

_QUALITIES: dict[str, Quality] = {
    "auto": "medium",
    "standard": "medium",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "hd": "high",
}


class LoraBody(BaseModel):
    """An adapter to draw with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1)]
    """As the operator named it."""
    scale: Annotated[float, Field(ge=-10.0, le=10.0, allow_inf_nan=False)] = 1.0
    """Its share; 1 is what it was trained for."""


class PictureBody(BaseModel):
    """What all three operations share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    """Name or alias of the model; ``NAME:ADAPTER`` draws with one of its adapters."""
    n: Annotated[int, Field(ge=1)] = 1
    """How many pictures; each has a seed of its own, which the answer names."""
    size: str | None = None
    """``auto`` or WIDTHxHEIGHT. Never rounded: a size that the model can't draw is an error."""
    response_format: Literal["b64_json", "url"] = "b64_json"
    """``url`` keeps the file for an hour (``GET`` it with the same key)."""
    output_format: OutputFormat = "png"
    """Of the pictures."""
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    """Quality of jpeg and webp."""
    user: str | None = None
    """The client's own name for its end user; accepted, without effect."""
    safety_identifier: str | None = None
    """Likewise."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    """Of the first picture; the next ones follow it. The same request and seed draw the same picture."""
    negative_prompt: str | None = None
    """What not to draw, for models with guidance."""
    num_inference_steps: Annotated[int, Field(ge=1)] | None = None
    """In place of the quality's steps."""
    guidance_scale: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    """In place of the model's guidance."""
    scheduler: str | None = None
    """Class name of a diffusers scheduler that fits the model."""
    row_cache_threshold: Annotated[float, Field(le=1.0)] | None = None
    """First-block caching, see the model's options; negative for none."""
    lora: Annotated[list[LoraBody], Field(max_length=_MAX_ADAPTERS)] = []
    """Adapters to draw with, after the one of the model's name."""
    exact: bool = False
    """Runs alone: the last bit does not depend on other requests."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.output_compression is not None and self.output_format == "png":
            raise InvalidRequest(
                "output_compression is for jpeg and webp; png loses nothing.", param="output_compression"
            )
        return self

    @property
    def wanted_size(self) -> str | None:
        """None for ``auto``."""
        return None if self.size in (None, "auto") else self.size

    @property
    def first_seed(self) -> int:
        """The given one, or a new one: pictures of one request follow one seed."""
        return self.seed if self.seed is not None else secrets.randbelow(2**32)


class StreamedBody(PictureBody):
    """What generations and edits share."""

    prompt: Annotated[str, Field(min_length=1, max_length=32_000)]
    """What to draw."""
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] = "auto"
    """Chooses the steps; ``auto`` and ``standard`` are ``medium``, ``hd`` is ``high``."""
    background: Literal["auto", "opaque", "transparent"] = "auto"
    """Pictures are opaque; ``transparent`` is an error."""
    moderation: Literal["auto", "low"] = "auto"
    """Accepted; there is no moderation."""
    stream: bool = False
    """Sends events."""
    partial_images: Annotated[int, Field(ge=0, le=3)] = 0
    """How many intermediate pictures a stream sends for each picture."""
    preview: PreviewKind | None = None
    """How they are made: ``decode`` by the autoencoder, ``linear`` cheaply, blurred and of nearly the right colours."""
    progress: bool = False
    """Whether a stream tells each step."""

    @model_validator(mode="after")
    def _check_stream(self) -> Self:
        if self.background == "transparent":
            raise InvalidRequest("background transparent: this server draws opaque pictures only.", param="background")
        if self.partial_images and not self.stream:
            raise InvalidRequest("partial_images needs stream=true.", param="partial_images")
        if self.preview is not None and not self.partial_images:
            raise InvalidRequest("preview is of partial images; ask for some with partial_images.", param="preview")
        if self.progress and not self.stream:
            raise InvalidRequest("progress needs stream=true.", param="progress")
        if self.stream and self.response_format == "url":
            raise InvalidRequest("A stream sends b64_json; leave response_format out.", param="response_format")
        return self

    @property
    def used_quality(self) -> Quality:
        """Low, medium or high."""
        return _QUALITIES[self.quality]


class GenerationsBody(StreamedBody):
    """The JSON body of ``POST /v1/images/generations``."""

    style: None = None
    """Of retired models; only null."""


def request_input(
    body: PictureBody,
    operation: Operation,
    *,
    images: tuple[bytes, ...] = (),
    mask: bytes | None = None,
    strength: float | None = None,
    adapter: str | None = None,
) -> ImageInput:
    """The whole request as it goes to the model."""
    named = () if adapter is None else (LoraChoice(name=adapter),)
    streamed = body if isinstance(body, StreamedBody) else None
    return ImageInput(
        operation=operation,
        prompt=streamed.prompt if streamed is not None else "",
        images=images,
        mask=mask,
        n=body.n,
        size=body.wanted_size,
        quality=streamed.used_quality if streamed is not None else "medium",
        output_format=body.output_format,
        output_compression=body.output_compression,
        partial_images=streamed.partial_images if streamed is not None else 0,
        preview=streamed.preview if streamed is not None else None,
        seed=body.first_seed,
        negative_prompt=body.negative_prompt,
        num_inference_steps=body.num_inference_steps,
        guidance_scale=body.guidance_scale,
        strength=strength,
        scheduler=body.scheduler,
        row_cache_threshold=body.row_cache_threshold,
        lora=(*named, *(LoraChoice(name=each.name, scale=each.scale) for each in body.lora)),
        exact=body.exact,
    )
