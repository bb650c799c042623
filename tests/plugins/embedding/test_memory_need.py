"""What an encoder says it will take, beside what it takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sixfold.core.memory.need import MemoryQuestion
from sixfold.plugins.embedding import memory_need
from sixfold.plugins.embedding.model import EmbeddingModel
from sixfold.plugins.embedding.options import EmbeddingOptions
from sixfold.plugins.embedding.vllm_options import VllmEmbeddingOptions
from tests.plugins.embedding.conftest import ARCHITECTURES, SaveModel, read_json


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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_auto_counts_on_ranks_only_for_models_that_ranks_can_divide(
    architecture: str, save_model: SaveModel, load_folder: Callable[..., EmbeddingModel]
) -> None:
    path = save_model(architecture)
    options = EmbeddingOptions(parallel_tokens=32)
    shape = memory_need.parallel_shape(question(path, options, "cuda:0"))
    assert shape.can_split_tokens == (architecture in memory_need.DIVIDED_TYPES)
    if shape.can_split_tokens:
        model = load_folder(path)
        assert model.info.details["execution"] in ("fused", "packed")
        model.close()


def test_each_type_that_auto_divides_is_among_those_that_are_tried() -> None:
    assert set(ARCHITECTURES) >= memory_need.DIVIDED_TYPES


def test_auto_divides_no_layers_with_windows_nor_positions_between_tokens(save_model: SaveModel) -> None:
    path = save_model("qwen3")
    config = read_json(path / "config.json")
    for own in ({"sliding_window": 16, "use_sliding_window": True}, {"position_embedding_type": "relative_key"}):
        (path / "config.json").write_text(json.dumps(config | own))
        asked = question(path, EmbeddingOptions(parallel_tokens=32), "cuda:0")
        assert not memory_need.parallel_shape(asked).can_split_tokens
