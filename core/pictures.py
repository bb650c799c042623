"""Pictures from clients: what every plugin must check before it decodes one, since hostile files look like others.

Imports Pillow, which comes with the extras of the plugins that read pictures; nothing else of the core imports this.
"""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from sixfold.core.errors import InvalidRequest

# Formats that Pillow reads without other programs; others (EPS, PDF, video) are refused.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_MAX_SIDE = 32_768


def read_picture(data: bytes, *, param: str, max_pixels: int) -> Image.Image:
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
    except Image.DecompressionBombError as error:
        raise InvalidRequest(f"The image is too large; at most {max_pixels} pixels are read.", param=param) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
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


def flatten(image: Image.Image) -> Image.Image:
    """RGB, with white where it was transparent."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    ground = Image.new("RGB", image.size, "white")
    ground.paste(image, mask=image.getchannel("A"))
    return ground
