"""Long documents over ranks: a BERT, a RoBERTa with its positions, and a decoder with grouped heads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sixfold.core.parallel.degrees import Degrees
from tests.core.parallel.processes import run_ranks
from tests.plugins.embedding.document_cases import MIN_TOKENS, vectors

MODES = {
    "ulysses of 2": Degrees(context=2, ulysses=2),
    "ring of 2": Degrees(context=2),
    "2 x 2": Degrees(context=4, ulysses=2),
}
MODELS = {"bert": "mean", "xlm-roberta": "cls", "qwen3": "lasttoken"}


@pytest.fixture(scope="module")
def folders(save_model: Callable[..., Path]) -> dict[str, Path]:
    return {name: save_model(name, pooling=pooling) for name, pooling in MODELS.items()} | {
        "modernbert": save_model("modernbert")
    }


@pytest.fixture(scope="module")
def found(folders: dict[str, Path], texts: list[str]) -> dict[str, dict[str, Any]]:
    work = functools.partial(vectors, folders, texts)
    return {mode: ranks[0] for mode, ranks in zip(MODES, run_ranks(work, *MODES.values(), timeout_s=300), strict=True)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_vectors_of_long_documents_among_short_ones_are_those_of_one_process(
    found: dict[str, dict[str, Any]],
    folders: dict[str, Path],
    texts: list[str],
    load_folder: Callable[..., Any],
    encode: Callable[..., Any],
    name: str,
    mode: str,
) -> None:
    actual, num_divided = found[mode][name]
    model = load_folder(folders[name])
    expected = encode(model, texts)
    model.close()
    assert np.abs(np.array(actual) - expected).max() <= 1e-5
    num_special = 1 if name == "qwen3" else 2
    assert num_divided == sum(len(text.split()) + num_special >= MIN_TOKENS for text in texts)


def test_layers_that_look_nearby_are_refused_when_the_model_starts(found: dict[str, dict[str, Any]]) -> None:
    for mode in MODES:
        assert found[mode]["modernbert"] == (
            "models.tiny.parallel: its layers look at tokens nearby only, which can't be divided among ranks yet. Remove "
            "'parallel'."
        )
