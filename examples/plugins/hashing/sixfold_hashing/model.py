"""The model: runs in the worker process."""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sixfold.core import Finish, ForwardModel, LoadContext, ModelFiles, ModelInfo, Request, Usage
from sixfold.plugins.embedding.contract import EmbeddingInput, EmbeddingOutput, dense_output, plain_texts

Vector = NDArray[np.float32]


class HashingModel(ForwardModel[str, Vector, EmbeddingInput, EmbeddingOutput]):
    """Counts each run of 3 to 5 letters at the place, and with the sign, that its checksum says."""

    def __init__(self, context: LoadContext) -> None:
        self._dimension = int(ModelFiles(context.path).json("hashing.json").get("dimension", 512))

    @property
    def info(self) -> ModelInfo:
        """Shown by ``/v1/models``."""
        return ModelInfo(details={"dimension": self._dimension})

    def estimate_units(self, request: Request[EmbeddingInput]) -> int:
        """A unit is a letter."""
        return sum(map(len, request.input.texts))

    def items(self, request: Request[EmbeddingInput]) -> Sequence[str]:
        """An item is a text."""
        return plain_texts(request.input)

    def units(self, item: str) -> int:
        """Its letters."""
        return len(item)

    def forward(self, items: Sequence[str]) -> Sequence[Vector]:
        """One vector of length 1 a text."""
        rows = np.zeros((len(items), self._dimension), np.float32)
        for row, item in zip(rows, items, strict=True):
            text = f" {item.lower()} ".encode()
            for code in (zlib.crc32(text[at : at + size]) for size in (3, 4, 5) for at in range(len(text) - size + 1)):
                row[code % self._dimension] += 1 if code >> 31 else -1
            row /= max(float(np.linalg.norm(row)), 1.0)
        return list(rows)

    def result(self, request: Request[EmbeddingInput], rows: Sequence[Vector]) -> Finish[EmbeddingOutput]:
        """The vectors in order."""
        usage = Usage(counts={"prompt_tokens": self.estimate_units(request)})
        return Finish(result=dense_output(rows, request.input), usage=usage)
