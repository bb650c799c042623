"""Writes the JSON and the events of ``/v1/images`` as OpenAI's clients read them."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec

from sixfold.core.messages import Finished, Increment, Usage
from sixfold.core.serving.api import Running
from sixfold.core.serving.sse import event_frame
from sixfold.plugins.image.answers import ImagesObject, ImageUsage, PictureObject
from sixfold.plugins.image.schema import ImageResult, OutputFormat, PartialImage, Quality, StepProgress

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """What an answer repeats of its request.

    Attributes:
        quality: Low, medium or high.
        output_format: Of the pictures.
        size: As asked; None when the model chose.
        created_s: Unix time.
    """

    quality: Quality
    output_format: OutputFormat
    size: str | None
    created_s: int

    @classmethod
    def now(cls, *, quality: Quality, output_format: OutputFormat, size: str | None) -> Echo:
        """For an answer that is made now."""
        return cls(quality=quality, output_format=output_format, size=size, created_s=int(time.time()))


def usage_object(usage: Usage) -> ImageUsage:
    """OpenAI's usage: tokens of the prompt, latent positions of images."""
    counts = usage.counts
    given = counts["text_tokens"] + counts["image_tokens"]
    return {
        "input_tokens": given,
        "output_tokens": counts["output_tokens"],
        "total_tokens": given + counts["output_tokens"],
        "input_tokens_details": {"text_tokens": counts["text_tokens"], "image_tokens": counts["image_tokens"]},
    }


def images_body(echo: Echo, finished: Finished[Any], urls: tuple[str, ...]) -> bytes:
    """The body of an answer that is not streamed.

    Args:
        echo: See there.
        finished: With an `ImageResult`.
        urls: Of the pictures; () sends them in the body.
    """
    result: ImageResult = finished.result
    rows: list[PictureObject] = [
        {"url": urls[index], "seed": picture.seed}
        if urls
        else {"b64_json": base64.b64encode(picture.data).decode(), "seed": picture.seed}
        for index, picture in enumerate(result.pictures)
    ]
    body: ImagesObject = {
        "created": echo.created_s,
        "data": rows,
        "background": "opaque",
        "output_format": echo.output_format,
        "quality": echo.quality,
        "size": f"{result.width}x{result.height}",
        "num_inference_steps": result.num_inference_steps,
        "usage": usage_object(finished.usage),
    }
    return _encode(body)


async def image_events(
    echo: Echo, running: Running, *, prefix: str, default_size: str, tells_steps: bool = False
) -> AsyncIterator[bytes]:
    """The events of a streamed answer: steps if wanted, partial images, one completed event a picture.

    Args:
        echo: See there.
        running: The request.
        prefix: ``image_generation`` or ``image_edit``.
        default_size: What partial images name as their size when the model chose it.
        tells_steps: Whether each step is an event, which OpenAI does not have.
    """
    head = {
        "created_at": echo.created_s,
        "background": "opaque",
        "output_format": echo.output_format,
        "quality": echo.quality,
    }
    async for events in running:
        for event in events:
            output = event.output if isinstance(event, Increment) else None
            if isinstance(output, StepProgress) and tells_steps:
                yield _step_frame(f"{prefix}.progress", output)
            elif isinstance(output, PartialImage):
                body = {
                    "type": f"{prefix}.partial_image",
                    **head,
                    "size": echo.size or default_size,
                    "partial_image_index": output.partial_index,
                    "image_index": output.image_index,
                }
                yield await asyncio.to_thread(_with_picture, body, output.data)
            elif isinstance(event, Finished):
                result: Any = event.result
                size = f"{result.width}x{result.height}"
                usage = usage_object(event.usage)
                for index, picture in enumerate(result.pictures):
                    body = {
                        "type": f"{prefix}.completed",
                        **head,
                        "size": size,
                        "usage": usage,
                        "seed": picture.seed,
                        "image_index": index,
                    }
                    yield await asyncio.to_thread(_with_picture, body, picture.data)


def _step_frame(kind: str, done: StepProgress) -> bytes:
    body = {"type": kind, "image_index": done.image_index, "step": done.step, "num_steps": done.num_steps}
    return event_frame(kind, _encode(body))


def _with_picture(body: dict[str, Any], data: bytes) -> bytes:
    return event_frame(body["type"], _encode({**body, "b64_json": base64.b64encode(data).decode()}))
