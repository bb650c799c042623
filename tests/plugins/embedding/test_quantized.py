"""An embedding model with fewer bits: nearly the same vectors, run packed, and measured by the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sixfold.core.family import LoadContext
from sixfold.core.runtime.quantization.policy import QuantizationPolicy
from sixfold.core.runtime.quantized_matmul import has_byte_products
from sixfold.plugins.embedding.loader import load
from sixfold.plugins.embedding.options import EmbeddingOptions
from sixfold.plugins.embedding.quality import EmbeddingQuality
from sixfold.plugins.embedding.schema import EmbeddingInput, EmbeddingOutput
from tests.plugins.embedding.conftest import run_request

pytestmark = pytest.mark.skipif(not has_byte_products(), reason="this CPU has no AVX512-VNNI or -BF16")
INT8 = QuantizationPolicy(scheme="int8")


def context(path: Path, policy: QuantizationPolicy | None = None, dtype: str = "float32") -> LoadContext:
    options = EmbeddingOptions.model_validate({"dtype": dtype})
    return LoadContext(model_name="m", path=path, device="cpu", num_threads=1, options=options, quantization=policy)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vectors_stay_near_and_the_memory_shrinks(bert_path: Path, texts: list[str], dtype: str) -> None:
    vectors: list[NDArray[np.float32]] = []
    models = [load(context(bert_path, policy, dtype)) for policy in (None, INT8)]
    for model in models:
        found = run_request(model, EmbeddingInput(texts=tuple(texts))).result
        assert isinstance(found, EmbeddingOutput)
        vectors.append(np.frombuffer(found.vectors, dtype=np.float32).reshape(len(texts), -1))
    lengths = np.linalg.norm(vectors[0], axis=1) * np.linalg.norm(vectors[1], axis=1)
    assert ((vectors[0] * vectors[1]).sum(axis=1) / lengths).min() > 0.995
    stock, quantized = (model.info for model in models)
    assert str(quantized.details["quantization"]).startswith("int8 weights: ")
    assert quantized.details["execution"] == "packed"
    assert stock.memory_bytes is not None
    assert quantized.memory_bytes is not None
    assert quantized.memory_bytes < stock.memory_bytes
    assert quantized.parameters == stock.parameters


def test_the_report_measures_cosines(bert_path: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    (tmp_path / "texts").write_text("one two three\n\nfour five\n")
    probe = EmbeddingQuality(context(bert_path), tmp_path / "texts")
    assert probe.inputs_text.startswith("2 texts of ")
    base = probe.measure(None, timed=False)
    assert base.figures["cosine_min"] == pytest.approx(1.0, abs=1e-6)
    found = probe.measure(INT8, timed=True)
    assert 0.99 < found.figures["cosine_min"] < 1.0
    assert found.figures["texts_per_s"] > 0
    assert found.weight_bytes < base.weight_bytes
