"""Images in a prompt: which tokens stand for them, what these are known as, and when their features are there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future

import numpy as np
from torch import Tensor

from sixfold.plugins.llm.sampling import IntArray


class PromptImage:
    """One image of one prompt, shared by the choices of a request. Made in the pool, then owned by the device thread.

    Its features are kept until the last sequence is released: a sequence that lost its memory needs them again.

    Args:
        start: Position in the prompt of the first token that stands for it.
        end: Position behind the last.
        positions: Those that its features go to, rising.
        content: Equal for equal images that are processed alike.
        inputs: For the vision tower; let go when it has computed them.
        num_holders: Sequences that have it.
    """

    __slots__ = ("content", "encoding", "end", "inputs", "num_holders", "positions", "start")

    def __init__(
        self,
        *,
        start: int,
        end: int,
        positions: IntArray,
        content: bytes,
        inputs: Mapping[str, Tensor],
        num_holders: int = 1,
    ) -> None:
        self.start = start
        self.end = end
        self.positions = positions
        self.content = content
        self.inputs: Mapping[str, Tensor] | None = inputs
        self.num_holders = num_holders
        self.encoding: Future[list[Tensor]] | None = None  # None until the vision tower was asked

    @property
    def is_encoded(self) -> bool:
        """Whether the vision tower has answered, be it with an error."""
        return self.encoding is not None and self.encoding.done()

    @property
    def failure(self) -> BaseException | None:
        """What the vision tower failed with."""
        encoding = self.encoding
        return encoding.exception() if encoding is not None and encoding.done() and not encoding.cancelled() else None

    @property
    def features(self) -> Tensor:
        """[positions, hidden size]; only when it is encoded."""
        assert self.encoding is not None
        return self.encoding.result()[0]

    def key(self, begin: int, end: int) -> bytes:
        """What a block of the positions ``begin`` to ``end`` depends on beside its tokens; b"" if not on this image."""
        if self.start >= end or self.end <= begin:
            return b""
        return self.content + (self.start - begin).to_bytes(8, "little", signed=True)


def block_key(images: Iterable[PromptImage], begin: int, end: int) -> bytes:
    """What a block's content depends on beside its tokens: the images that it holds a part of, and where."""
    return b"".join(image.key(begin, end) for image in images)


def num_visible(images: Sequence[PromptImage], begin: int) -> int | None:
    """Tokens from ``begin`` on that need no image which is not encoded yet; None if there is no such image."""
    for image in images:
        place = int(np.searchsorted(image.positions, begin))
        if place < len(image.positions) and not image.is_encoded:
            return int(image.positions[place]) - begin
    return None


def feature_rows(images: Sequence[PromptImage], begin: int, end: int) -> list[tuple[IntArray, Tensor]]:
    """The positions from ``begin`` to ``end`` that take features, relative to ``begin``, and the features."""
    found: list[tuple[IntArray, Tensor]] = []
    for image in images:
        first, last = (int(place) for place in np.searchsorted(image.positions, (begin, end)))
        if last > first:
            found.append((image.positions[first:last] - begin, image.features[first:last]))
    return found
