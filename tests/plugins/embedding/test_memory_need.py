"""What an encoder says it will take, beside what it takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sixfold.core.memory.need import MemoryQuestion
from sixfold.plugins.embedding import memory_need
from sixfold.plugins.embedding.model import EmbeddingModel
from sixfold.plugins.embedding.options import EmbeddingOptions
from sixfold.plugins.embedding.vllm_options import VllmEmbeddingOptions


def question(path: Path, options: EmbeddingOptions | VllmEmbeddingOptions, device: str = "cpu") -> MemoryQuestion:
    return MemoryQuestion(
        path=path,
        options=options,
        device=device,
        num_threads=2,
        total_bytes=80 << 30,
        free_bytes=80 << 30,
        has_bfloat16=True,
    )


def test_weights_are_those_that_are_loaded_in_their_type(bert_path: Path, bert: EmbeddingModel) -> None:
    said = memory_need.need(question(bert_path, EmbeddingOptions()))
    assert said.weights_bytes == pytest.approx(bert.info.memory_bytes, rel=0.05)
    half = memory_need.need(question(bert_path, EmbeddingOptions(dtype="bfloat16")))
    assert half.weights_bytes == pytest.approx(said.weights_bytes / 2, rel=0.01)
    assert half.working_bytes < said.working_bytes


def test_exports_for_other_runtimes_do_not_count(bert_path: Path) -> None:
    before = memory_need.need(question(bert_path, EmbeddingOptions()))
    export = bert_path / "onnx" / "model.onnx"
    export.parent.mkdir()
    export.write_bytes(b"x" * 1_000_000)
    try:
        assert memory_need.need(question(bert_path, EmbeddingOptions())) == before
    finally:
        export.unlink()
        export.parent.rmdir()


def test_an_engine_takes_its_share_of_a_gpu(bert_path: Path) -> None:
    options = VllmEmbeddingOptions(gpu_memory_utilization=0.5)
    said = memory_need.vllm_need(question(bert_path, options, "cuda:0"))
    assert said.weights_bytes + said.cache_bytes + said.working_bytes == 40 << 30
