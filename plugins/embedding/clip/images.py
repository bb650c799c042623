"""From what clients send as an image to an upright RGB picture, in pool threads; hostile bytes end in a 400."""

from __future__ import annotations

import base64
import binascii
import io
import struct

from PIL import Image, ImageOps, UnidentifiedImageError

from sixfold.core.errors import InvalidRequest

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that Pillow reads without other programs; others (EPS, PDF, video) are refused."""

# What Pillow's decoders raise on broken files, as its own tests list them.
_BROKEN = (
    *(OSError, ValueError, SyntaxError, TypeError, EOFError, IndexError, KeyError, ZeroDivisionError, OverflowError),
    struct.error,
)


def decode_base64(text: str, param: str) -> bytes:
    """The bytes of a base64 text or of a ``data:`` URL.

    Raises:
        InvalidRequest: It is neither, or empty.
    """
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise InvalidRequest(f"{param}: a data URL must hold base64: data:image/png;base64,...", param=param)
        kind = head.removeprefix("data:").partition(";")[0]
        if kind and not kind.startswith("image/"):
            raise InvalidRequest(f"{param}: {kind[:60]!r} is no image. Send a picture.", param=param)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{param} is neither base64, nor a data URL, nor an http URL.", param=param) from None
    if not data:
        raise InvalidRequest(f"{param} is empty. Send a picture.", param=param)
    return data


def decode_image(data: bytes, *, max_pixels: int, param: str) -> Image.Image:
    """An upright RGB picture; of an animation its first frame.

    Args:
        data: A file of one of the known formats.
        max_pixels: Bound on width times height, checked before any pixel is decoded.
        param: Where it came from, for messages.

    Raises:
        InvalidRequest: It is no such file, broken, or too large.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise _too_large(f"{width}x{height}", max_pixels, param)
        return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        raise InvalidRequest(f"{param} is no image; {', '.join(_FORMATS)} are taken.", param=param) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large("this", max_pixels, param) from None
    except InvalidRequest:
        raise
    except _BROKEN as error:
        raise InvalidRequest(
            f"{param} is a broken image ({type(error).__name__}). Send it again, or another file.", param=param
        ) from None


def _too_large(size: str, max_pixels: int, param: str) -> InvalidRequest:
    return InvalidRequest(
        f"{param}: an image of {size} is too large; at most {max_pixels} pixels are taken. Scale it down.", param=param
    )
