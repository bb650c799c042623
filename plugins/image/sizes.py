"""Sizes of pictures: what a client may ask for, and what an input image is scaled to."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from sixfold.core.errors import InvalidRequest

_SIZE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRules:
    """What a model can draw.

    Attributes:
        default: Width and height when nothing is said.
        multiple: Both sides are multiples of it.
        max_pixels: Of a picture.
    """

    default: tuple[int, int]
    multiple: int
    max_pixels: int

    def parse(self, size: str | None) -> tuple[int, int]:
        """Width and height of ``WIDTHxHEIGHT``. Sizes are never rounded: a client gets what it asked for, or an error.

        Raises:
            InvalidRequest: Not of this form, too large, or not divisible; the nearest size that is allowed is named.
        """
        if size is None:
            return self.default
        found = _SIZE.fullmatch(size)
        if found is None:
            raise InvalidRequest(f"size {size[:40]!r} is not WIDTHxHEIGHT in pixels, nor auto.", param="size")
        width, height = int(found[1]), int(found[2])
        if width * height > self.max_pixels:
            raise InvalidRequest(
                f"size {size} has {width * height} pixels; this model draws at most {self.max_pixels}.", param="size"
            )
        if width % self.multiple or height % self.multiple:
            near = "x".join(
                str(max(self.multiple, round(side / self.multiple) * self.multiple)) for side in (width, height)
            )
            raise InvalidRequest(
                f"size {size} is not divisible: width and height must be multiples of {self.multiple}. Ask for {near}.",
                param="size",
            )
        return width, height

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """The size nearest to an input image's that the model can draw, of about its shape."""
        scale = min(1.0, math.sqrt(self.max_pixels / (width * height)))
        return self._down(width * scale), self._down(height * scale)

    def _down(self, side: float) -> int:
        return max(self.multiple, int(side) // self.multiple * self.multiple)
