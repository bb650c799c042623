"""Masks of edits, and results encoded as they were asked for; `sixfold.core.pictures` reads what clients send."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.image.schema import OutputFormat


def edit_mask(mask: Image.Image, size: tuple[int, int], *, param: str) -> Image.Image:
    """White where the picture is to be drawn anew: where the mask is transparent.

    Raises:
        InvalidRequest: Nothing is transparent, or the size is not the image's.
    """
    if mask.size != size:
        raise InvalidRequest(
            f"The mask has {mask.width}x{mask.height} pixels, the image {size[0]}x{size[1]}: they must be equal.",
            param=param,
        )
    if mask.mode != "RGBA" or mask.getchannel("A").getextrema()[0] == 255:
        raise InvalidRequest(
            "The mask has no transparent pixels. Make transparent what shall be drawn anew (alpha 0).", param=param
        )
    return mask.getchannel("A").point([255] * 128 + [0] * 128)


def write_image(image: Image.Image, output_format: OutputFormat, compression: int | None) -> bytes:
    """The bytes of a picture.

    Args:
        image: Drawn.
        output_format: As the client asked.
        compression: 0 to 100: quality of jpeg and webp; None for the encoder's default.
    """
    options: dict[str, Any] = {}
    if output_format != "png" and compression is not None:
        options["quality"] = max(1, compression)
    stream = io.BytesIO()
    image.convert("RGB").save(stream, output_format, **options)
    return stream.getvalue()
