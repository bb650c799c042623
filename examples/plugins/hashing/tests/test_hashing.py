"""Near texts have near vectors, whatever their case; the conformance kit, which pytest runs as well, does the rest."""

import json
from pathlib import Path

import numpy as np
from sixfold_hashing.model import HashingModel

from sixfold.core import LoadContext


def model(folder: Path) -> HashingModel:
    (folder / "hashing.json").write_text(json.dumps({"dimension": 256}))
    return HashingModel(LoadContext(model_name="near", path=folder, device="cpu", num_threads=1, options=None))


def test_a_misspelt_text_is_nearer_than_another_one(tmp_path: Path) -> None:
    meant, misspelt, other = model(tmp_path).forward(["hospital admission", "Hospitl admision", "a red bicycle"])
    assert meant @ misspelt > 0.5 > meant @ other


def test_vectors_have_the_length_one(tmp_path: Path) -> None:
    rows = model(tmp_path).forward(["a", "some longer text"])
    assert np.allclose(np.linalg.norm(rows, axis=1), 1)
