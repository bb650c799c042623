"""The dual encoder as the core sees it: one sequence an input; texts share steps with texts, images with images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sixfold.core.batching.model import Finish, Granted, ModelInfo, Outcome, StepModel, StepRange
from sixfold.core.errors import InvalidRequest, StepFailed
from sixfold.core.messages import Cost, Request, Usage
from sixfold.core.pictures import read_picture
from sixfold.plugins.embedding.clip.images import decode_base64
from sixfold.plugins.embedding.clip.network import DualEncoder
from sixfold.plugins.embedding.clip.options import ClipOptions
from sixfold.plugins.embedding.packing import TokenIds
from sixfold.plugins.embedding.schema import EmbeddingInput, EmbeddingOutput, ImageItem, TextItem

_TEXTS_A_PIECE = 32
_CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True, slots=True)
class ItemPiece:
    """Inputs ``start`` to ``stop`` of a request: some texts, or one image."""

    start: int
    stop: int


@dataclass(slots=True)
class ItemSequence:
    """One input. Written by `ClipModel` alone: by `prepare` in the pool, then by `step` in the device thread.

    Attributes:
        content: Token ids of a text, or the pixels of an image.
        vector: [dimension] after its step.
    """

    content: TokenIds | Tensor
    vector: NDArray[np.float32] | None = None


class ClipModel(StepModel[ItemSequence, EmbeddingInput, EmbeddingOutput]):
    """A loaded dual encoder.

    Args:
        info: What the loader found out.
        network: Both towers and their preprocessing.
        options: The operator's.
        num_threads: CPU threads for steps.
    """

    def __init__(self, *, info: ModelInfo, network: DualEncoder, options: ClipOptions, num_threads: int) -> None:
        self._info = info
        self._network = network
        self._options = options
        self._num_threads = num_threads
        self._counts = {"embedding_inputs_total": 0.0, "embedding_images_total": 0.0, "embedding_tokens_total": 0.0}

    @property
    def info(self) -> ModelInfo:
        """See `StepModel`."""
        return self._info

    @property
    def step_range(self) -> StepRange:
        """At least one image; at most what a few hundred megabytes of activations hold."""
        return StepRange(min_units=max(256, self._network.num_patches), initial_units=1024, max_units=16_384)

    def estimate_units(self, request: Request[EmbeddingInput]) -> int:
        """See `StepModel`; an image is its patches, a token about four characters."""
        units = 0
        for item in _items(request.input):
            if isinstance(item, ImageItem):
                units += self._network.num_patches
            else:
                num_tokens = min(len(item.text) // _CHARACTERS_A_TOKEN + 2, self._network.max_tokens)
                units += self._network.text_units(num_tokens)
        return max(units, 1)

    def warm_up(self) -> None:
        """Runs both towers once."""
        torch.set_num_threads(self._num_threads)  # each thread has its own setting until it is told
        self._network.embed_texts([self._network.tokenize("a picture", truncate_tokens=-1, param="input")] * 2)
        self._network.embed_images([self._network.preprocess(Image.new("RGB", (64, 64)))])

    def split(self, request: Request[EmbeddingInput]) -> Sequence[ItemPiece]:
        """Each image is a piece, since decoding is slow; texts go by the dozen."""
        items = _items(request.input)
        pieces: list[ItemPiece] = []
        for index, item in enumerate(items):
            joins = (
                pieces
                and isinstance(item, TextItem)
                and isinstance(items[pieces[-1].start], TextItem)
                and index - pieces[-1].start < _TEXTS_A_PIECE
            )
            if joins:
                pieces[-1] = ItemPiece(pieces[-1].start, index + 1)
            else:
                pieces.append(ItemPiece(index, index + 1))
        return pieces or [ItemPiece(0, 0)]

    def prepare(self, request: Request[EmbeddingInput], piece: object) -> Sequence[ItemSequence]:
        """Tokenizes texts, decodes and preprocesses images.

        Raises:
            InvalidRequest: A broken, foreign or huge image, a text over the limit, or what such models do not have.
        """
        assert isinstance(piece, ItemPiece)
        wanted = request.input
        self._check(wanted)
        items = _items(wanted)
        return [ItemSequence(self._content(items[index], index, wanted)) for index in range(piece.start, piece.stop)]

    def cost(self, sequence: ItemSequence) -> Cost:
        """All of its tokens or patches at once; an image never shares a step with a text."""
        if isinstance(sequence.content, Tensor):
            units, kind = self._network.num_patches, tuple(sequence.content.shape)
        else:
            units, kind = self._network.text_units(len(sequence.content)), ()
        return Cost(units=units, min_units=units, batch_key=kind)

    def step(self, batch: Sequence[Granted[ItemSequence]]) -> Sequence[Outcome[EmbeddingOutput]]:
        """Embeds all inputs of the batch, which are of one kind; each is done after its one step."""
        sequences = [granted.sequence for granted in batch]
        images = [sequence.content for sequence in sequences if isinstance(sequence.content, Tensor)]
        texts = [sequence.content for sequence in sequences if not isinstance(sequence.content, Tensor)]
        assert not (images and texts), "batch keys keep kinds apart"
        vectors = self._network.embed_images(images) if images else self._network.embed_texts(texts)
        if self._options.normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        for sequence, vector in zip(sequences, vectors, strict=True):
            sequence.vector = vector
        self._counts["embedding_inputs_total"] += len(sequences)
        self._counts["embedding_images_total"] += len(images)
        self._counts["embedding_tokens_total"] += sum(map(len, texts))
        finite: list[bool] = np.isfinite(vectors).all(axis=1).tolist()  # type: ignore[assignment]  # numpy types an axis as none
        return [_DONE if ok else _NOT_FINITE for ok in finite]

    def finish(self, request: Request[EmbeddingInput], sequences: Sequence[ItemSequence]) -> Finish[EmbeddingOutput]:
        """Joins the vectors; ``prompt_tokens`` counts tokens of texts and patches of images."""
        vectors = np.stack([sequence.vector for sequence in sequences if sequence.vector is not None])
        counts = {"prompt_tokens": sum(self.cost(sequence).units for sequence in sequences)}
        return Finish(
            result=EmbeddingOutput(
                vectors=np.ascontiguousarray(vectors, dtype="<f4").tobytes(), dimension=vectors.shape[1]
            ),
            usage=Usage(counts=counts),
        )

    def stats(self) -> Mapping[str, float]:
        """See `Family.metrics` in plugin.py."""
        return dict(self._counts)

    def _content(self, item: TextItem | ImageItem, index: int, wanted: EmbeddingInput) -> TokenIds | Tensor:
        param = f"input[{index}]"
        if isinstance(item, TextItem):
            return self._network.tokenize(item.text, truncate_tokens=wanted.truncate_tokens, param=param)
        data = item.data or decode_base64(item.encoded, f"{param}.image")
        image = read_picture(data, max_pixels=self._options.max_image_pixels, param=f"{param}.image")
        return self._network.preprocess(image.convert("RGB"))

    def _check(self, wanted: EmbeddingInput) -> None:
        if wanted.token_ids:
            raise InvalidRequest("This model takes texts and images, no token ids.", param="input")
        for name in ("prompt_name", "input_type", "dimensions"):
            if getattr(wanted, name) is not None:
                raise InvalidRequest(f"The model has nothing for {name}: leave it out.", param=name)
        num_inputs = len(_items(wanted))
        if num_inputs > self._options.max_inputs:
            raise InvalidRequest(
                f"input has {num_inputs} items; at most {self._options.max_inputs} are taken. Send several requests.",
                param="input",
            )


def _items(wanted: EmbeddingInput) -> Sequence[TextItem | ImageItem]:
    return wanted.items or tuple(TextItem(text=text) for text in wanted.texts)


_DONE: Outcome[EmbeddingOutput] = Outcome(done=True)
_NOT_FINITE: Outcome[EmbeddingOutput] = Outcome(
    done=True, error=StepFailed("The model gave no finite vector for an input of this request.")
)
