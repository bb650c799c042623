"""Pictures made from a clip's frames: the thumbnail and the sprite sheet of ``/v1/videos/{id}/content``."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

THUMBNAIL_TYPE = "image/webp"
SPRITESHEET_TYPE = "image/jpeg"

_THUMBNAIL_SIDE = 512
_TILE_SIDE = 160
_MAX_TILES = 100


def thumbnail(frames: NDArray[np.uint8]) -> bytes:
    """The middle frame as webp, at most 512 pixels on its longer side.

    Args:
        frames: [frames, height, width, 3], RGB.
    """
    image = Image.fromarray(frames[len(frames) // 2])
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    return _encoded(image, "WEBP")


def spritesheet(frames: NDArray[np.uint8]) -> bytes:
    """Frames at equal distances in a grid, row by row from the first to the last, as jpeg.

    At most 100 tiles, each at most 160 pixels on its longer side.

    Args:
        frames: [frames, height, width, 3], RGB.
    """
    num_tiles = min(len(frames), _MAX_TILES)
    chosen = np.linspace(0, len(frames) - 1, num_tiles).round().astype(int)
    height, width = frames.shape[1:3]
    scale = min(1.0, _TILE_SIDE / max(height, width))
    tile = max(1, round(width * scale)), max(1, round(height * scale))
    columns = math.ceil(math.sqrt(num_tiles))
    sheet = Image.new("RGB", (columns * tile[0], math.ceil(num_tiles / columns) * tile[1]))
    for place, index in enumerate(chosen):
        image = Image.fromarray(frames[index]).resize(tile)
        sheet.paste(image, (place % columns * tile[0], place // columns * tile[1]))
    return _encoded(sheet, "JPEG")


def _encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, quality=85)
    return buffer.getvalue()
