"""Reads a client's reference image: nothing is decoded before its format and its size are known to be harmless."""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from sixfold.core.errors import InvalidRequest

PARAM = "input_reference"

_FORMATS = ("PNG", "JPEG", "WEBP")
_MAX_PIXELS = 50_000_000


def read_reference(data: bytes, *, width: int, height: int) -> Image.Image:
    """The image in RGB, upright, of exactly the clip's size.

    Raises:
        InvalidRequest: It is no PNG, JPEG or WebP image, is broken or huge, or has another size than the clip.
    """
    image = _decode(data)
    if image.size != (width, height):
        raise InvalidRequest(
            f"{PARAM} has {image.width}x{image.height} pixels, the video {width}x{height}. Crop or scale the image to "
            "the video's size, or ask for the image's size.",
            param=PARAM,
            code="size_mismatch",
        )
    return image


def blank_reference(width: int, height: int) -> bytes:
    """A grey image of this size, for trying a model."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (128, 128, 128)).save(file, "PNG")
    return file.getvalue()


def _decode(data: bytes) -> Image.Image:
    if not data:
        raise InvalidRequest(f"{PARAM} is empty. Send a PNG, JPEG or WebP image.", param=PARAM)
    try:
        with warnings.catch_warnings():
            # Pillow's own limit on pixels warns first; ours below is stricter and answers the client.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            if image.width * image.height > _MAX_PIXELS:
                raise _too_large()
            image.load()
            upright = ImageOps.exif_transpose(image)
            return _flat(upright)
    except InvalidRequest:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large() from error
    except UnidentifiedImageError as error:
        raise InvalidRequest(f"{PARAM} is no PNG, JPEG or WebP image.", param=PARAM, code="invalid_image") from error
    except Exception as error:  # a broken file raises anything from struct.error to SyntaxError in Pillow's parsers
        raise InvalidRequest(
            f"{PARAM} is a broken image file. Save it again and retry.", param=PARAM, code="invalid_image"
        ) from error


def _too_large() -> InvalidRequest:
    return InvalidRequest(
        f"{PARAM} has more than {_MAX_PIXELS // 1_000_000} million pixels. Scale it to the video's size.",
        param=PARAM,
        code="image_too_large",
    )


def _flat(image: Image.Image) -> Image.Image:
    """Without transparency: what shows through is white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
