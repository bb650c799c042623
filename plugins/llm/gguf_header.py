"""A reader of GGUF files that stops at their end: the library's own counts on lengths that a broken or hostile file claims, and
takes in memory without end."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gguf import GGUFReader


class BoundedGgufReader(GGUFReader):
    """`gguf.GGUFReader`, which raises where a file is shorter than it says.

    Raises:
        ValueError: The file ends in the middle of something, or is none.
    """

    def _get(self, offset: int, dtype: npt.DTypeLike, count: int = 1, override_order: Any = None) -> npt.NDArray[Any]:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > len(self.data):
            raise ValueError(f"the GGUF file has {len(self.data)} bytes, and says that there are {end} or more")
        return super()._get(offset, dtype, count, override_order)
