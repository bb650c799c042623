"""What a model says it will take, beside what it takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from sixfold.core.memory.need import MemoryQuestion
from sixfold.plugins.llm import memory_need
from sixfold.plugins.llm.options import TransformersOptions
from sixfold.plugins.llm.vllm_options import VllmOptions
from tests.plugins.llm.conftest import load_folder

GIB = 1 << 30


def question(path: Path, options: BaseModel, *, device: str = "cpu", has_bfloat16: bool = True) -> MemoryQuestion:
    return MemoryQuestion(
        path=path,
        options=options,
        device=device,
        num_threads=2,
        total_bytes=80 * GIB,
        free_bytes=80 * GIB,
        has_bfloat16=has_bfloat16,
    )


def of(**options: Any) -> TransformersOptions:
    return TransformersOptions.model_validate(options)


@pytest.mark.parametrize("name", ["llama", "llama-tied-bias", "qwen3", "gemma3", "phi3", "gpt2", "mixtral"])
@pytest.mark.parametrize("compute_packed", [True, False])
def test_weights_and_cache_are_what_is_loaded(
    model_folder: Callable[[str], Path], name: str, compute_packed: bool
) -> None:
    options = {"dtype": "float32", "kv_cache_bytes": 1 << 20, "compute_packed": compute_packed}
    said = memory_need.need(question(model_folder(name), of(**options)))
    info = load_folder(model_folder(name), **options).info
    assert info.memory_bytes is not None
    held = info.memory_bytes
    # Of the cache as many whole blocks are made as fit.
    block_bytes = 16 * said.cache_token_bytes
    assert (1 << 20) // block_bytes - 1 == int(info.details["kv_cache_tokens"]) // 16
    weights = held - (1 << 20) // block_bytes * block_bytes
    assert said.weights_bytes == pytest.approx(weights, rel=0.02)


def test_the_type_follows_the_options_and_the_processor(model_folder: Callable[[str], Path]) -> None:
    path = model_folder("llama")
    half = memory_need.need(question(path, of()))
    whole = memory_need.need(question(path, of(), has_bfloat16=False))
    assert (half.weights_bytes * 2, half.cache_token_bytes * 2) == (whole.weights_bytes, whole.cache_token_bytes)
    assert memory_need.need(question(path, of(dtype="float32"))) == whole


def test_a_draft_model_counts_with_a_cache_for_as_many_tokens(model_folder: Callable[[str], Path]) -> None:
    path = model_folder("llama")
    alone = memory_need.need(question(path, of(kv_cache_bytes=1 << 20)))
    speculation = {"method": "draft", "source": {"source": f"file:{path}", "path": str(path)}}
    both = memory_need.need(question(path, of(kv_cache_bytes=1 << 20, speculation=speculation)))
    assert both.weights_bytes == 2 * alone.weights_bytes
    assert both.cache_bytes == 2 * alone.cache_bytes
    assert both.cache_token_bytes == 2 * alone.cache_token_bytes


def test_a_gpu_gives_a_share_of_what_is_free_to_the_cache_unless_told(model_folder: Callable[[str], Path]) -> None:
    path = model_folder("llama")
    assert memory_need.need(question(path, of(), device="cuda:0")).cache_share == 0.8
    told = memory_need.need(question(path, of(kv_cache_bytes=GIB), device="cuda:0"))
    assert (told.cache_share, told.cache_bytes) == (0.0, GIB)


def test_vllm_takes_its_share_of_a_gpu_whatever_the_model(model_folder: Callable[[str], Path]) -> None:
    options = VllmOptions.model_validate({"gpu_memory_utilization": 0.5})
    said = memory_need.vllm_need(question(model_folder("llama"), options, device="cuda:0"))
    assert said.weights_bytes + said.cache_bytes + said.working_bytes == 40 * GIB


def test_asking_imports_nothing_heavy() -> None:
    code = (
        "import sys; import sixfold.plugins.llm.memory_need, sixfold.plugins.embedding.memory_need; "
        "import sixfold.plugins.asr.memory_need, sixfold.plugins.tts.memory_need; "
        "import sixfold.plugins.image.memory_need, sixfold.plugins.video.memory_need; "
        "sys.exit(', '.join({'torch', 'transformers', 'diffusers', 'onnxruntime', 'vllm'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
