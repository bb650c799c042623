"""Parts of a step in threads of their own give every text its vector, as one batch does."""

from __future__ import annotations

from pathlib import Path
from threading import current_thread
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sixfold.core.family import LoadContext
from sixfold.plugins.embedding.loader import load
from sixfold.plugins.embedding.options import EmbeddingOptions
from sixfold.plugins.embedding.side_by_side import SideBySide, deal


@given(lengths=st.lists(st.integers(1, 512), max_size=80), num_parts=st.integers(1, 9))
def test_every_text_is_dealt_once_and_no_part_is_ahead_by_more_than_a_text(lengths: list[int], num_parts: int) -> None:
    parts = deal(lengths, num_parts)
    assert sorted(index for part in parts for index in part) == list(range(len(lengths)))
    loads = [sum(lengths[index] for index in part) for part in parts]
    assert max(loads) - min(loads) <= max(lengths, default=0)


class Recorder:
    """An encoder whose vectors are the texts' lengths and first ids; remembers who ran what."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []

    def embed(self, sequences: list[NDArray[np.int64]], num_prompt_tokens: list[int]) -> NDArray[np.float32]:
        self.batches.append((current_thread().name, [len(sequence) for sequence in sequences]))
        if any(sequence[0] < 0 for sequence in sequences):
            raise ValueError("a negative id")
        rows = zip(sequences, num_prompt_tokens, strict=True)
        return np.array([[len(sequence), sequence[0], skipped] for sequence, skipped in rows], dtype=np.float32)


def texts_of(lengths: list[int]) -> list[NDArray[np.int64]]:
    return [np.full(length, index) for index, length in enumerate(lengths)]


@pytest.mark.parametrize(
    ("lengths", "num_batches"),
    [
        ([128] * 16, 2),
        ([300, 20, 100, 250, 7, 90, 400, 33, 260, 10], 2),
        ([128] * 7, 1),  # too little for two parts
        ([2000, 10, 10], 1),  # one text is nearly all of it
        ([1024], 1),
    ],
)
def test_a_step_is_cut_where_its_parts_are_large_and_even(lengths: list[int], num_batches: int) -> None:
    encoder: Any = Recorder()
    parts = SideBySide(encoder, 2)
    skipped = list(range(len(lengths)))
    found = parts.embed(texts_of(lengths), skipped)
    assert found.tolist() == [[length, index, index] for index, length in enumerate(lengths)]
    assert len(encoder.batches) == num_batches
    parts.close()


def test_a_part_that_fails_fails_the_step_after_the_others_have_ended() -> None:
    encoder: Any = Recorder()
    parts = SideBySide(encoder, 2)
    texts = texts_of([256] * 8)
    texts[3] -= 100
    with pytest.raises(ValueError, match="negative"):
        parts.embed(texts, [0] * 8)
    assert len(encoder.batches) == 2
    parts.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vectors_of_a_real_model_equal_those_of_one_batch(bert_path: Path, dtype: str) -> None:
    options = EmbeddingOptions.model_validate({"dtype": dtype})
    model: Any = load(LoadContext(model_name="m", path=bert_path, device="cpu", num_threads=2, options=options))
    rng = np.random.default_rng(0)
    texts = [rng.integers(5, 50, size=rng.integers(5, 60)) for _ in range(64)]
    expected = model._encoder.embed(texts, [0] * 64)
    for _ in range(20):  # threads that shared a batch's state gave rubbish now and then
        found = model._parts.embed(texts, [0] * 64)
        np.testing.assert_allclose(found, expected, atol=1e-6 if dtype == "float32" else 2e-2)
    model.close()
