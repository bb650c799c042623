"""Images from and for clients: uploads are checked before they are decoded, results are encoded as they were asked for."""

from __future__ import annotations

import io
import warnings
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.image.schema import OutputFormat

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_MAX_SIDE = 32_768


def read_image(data: bytes, *, param: str, max_pixels: int) -> Image.Image:
    """Decodes an upload. [pool]

    Args:
        data: PNG, JPEG, WebP, GIF (its first frame), BMP or TIFF.
        param: Name of the field, for errors.
        max_pixels: Larger ones are refused before a pixel is decoded.

    Returns:
        Upright, in RGB or RGBA.

    Raises:
        InvalidRequest: Empty, no image, broken, or too large.
    """
    if not data:
        raise InvalidRequest("The image is empty (0 bytes).", param=param)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bound is for programs that have none
            opened = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidRequest(
            "The file is no image that can be read. Send PNG, JPEG, WebP, GIF, BMP or TIFF.", param=param
        ) from error
    width, height = opened.size
    if width * height > max_pixels or max(width, height) > _MAX_SIDE:
        raise InvalidRequest(
            f"The image has {width}x{height} pixels; at most {max_pixels} in all and {_MAX_SIDE} a side are read.",
            param=param,
        )
    try:
        opened.seek(0)
        opened.load()
        image: Image.Image = ImageOps.exif_transpose(opened)
    except Exception as error:  # decoders raise nearly anything for broken files
        raise InvalidRequest("The image is broken or not complete.", param=param) from error
    has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    return image.convert("RGBA" if has_alpha else "RGB")


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


def flatten(image: Image.Image) -> Image.Image:
    """RGB, with white where it was transparent."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    ground = Image.new("RGB", image.size, "white")
    ground.paste(image, mask=image.getchannel("A"))
    return ground


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
