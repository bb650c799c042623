"""What a model says it will take, beside what it takes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from sixfold.core.config import default_cache_dir
from sixfold.core.family import LoadContext
from sixfold.core.memory.need import MemoryQuestion
from sixfold.core.memory.quantized import planned_bytes
from sixfold.core.parallel.degrees import Degrees
from sixfold.core.parallel.planner import Capacity, ParallelChoice, ParallelShape, choose
from sixfold.core.runtime.byte_dots import block_bytes
from sixfold.core.runtime.quantization.plan import Decision, LinearShape
from sixfold.core.runtime.quantization.policy import Method, QuantizationPolicy
from sixfold.core.runtime.quantized_matmul import has_byte_products
from sixfold.plugins.llm import memory_need
from sixfold.plugins.llm.loader import load
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


@pytest.mark.skipif(not has_byte_products(), reason="this CPU has no AVX512-VNNI or -BF16")
@pytest.mark.parametrize("name", ["llama", "llama-tied-bias", "qwen3", "gemma3", "mixtral"])
@pytest.mark.parametrize(
    "policy",
    [
        {"scheme": "int8"},
        {"scheme": "int4"},
        {"scheme": "int8", "skip": ["attention", {"first_blocks": 1}]},
        {"scheme": "int8", "components": {"lm_head": None}},
    ],
)
def test_quantized_weights_are_what_is_loaded(
    model_folder: Callable[[str], Path], name: str, policy: dict[str, Any]
) -> None:
    check_quantized(model_folder(name), policy, rel=0.1)


@pytest.mark.models
@pytest.mark.skipif(not has_byte_products(), reason="this CPU has no AVX512-VNNI or -BF16")
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_of_the_real_model_the_claim_is_within_a_tenth(scheme: str) -> None:
    folder = next(default_cache_dir().glob("gguf/SmolLM2-135M-Instruct*"))
    check_quantized(folder, {"scheme": scheme}, rel=0.1)


def check_quantized(path: Path, policy: dict[str, Any], *, rel: float) -> None:
    chosen, written = of(dtype="bfloat16", kv_cache_bytes=4 << 20), QuantizationPolicy.model_validate(policy)
    said = memory_need.need(dataclasses.replace(question(path, chosen), quantization=written))
    plain = memory_need.need(question(path, chosen))
    model: Any = load(
        LoadContext(model_name="m", path=path, device="cpu", num_threads=1, options=chosen, quantization=written)
    )
    held = model.info.memory_bytes - model._cache.num_bytes
    assert said.weights_bytes == pytest.approx(held, rel=rel)
    assert said.cache_bytes == plain.cache_bytes
    model.close()


def test_a_quantized_model_claims_the_whole_weights_that_loading_puts_on_a_gpu(
    model_folder: Callable[[str], Path],
) -> None:
    asked = question(model_folder("llama"), of(kv_cache_bytes=1 << 10), device="cuda:0")
    plain = memory_need.need(asked)
    said = memory_need.need(dataclasses.replace(asked, quantization=QuantizationPolicy(scheme="int4")))
    assert said.weights_bytes < plain.weights_bytes
    claimed = sum(claim.num_bytes for claim in said.claims("cuda:0", GIB) if claim.device == "cuda:0")
    assert claimed == plain.weights_bytes + plain.working_bytes


@pytest.mark.parametrize(("dtype", "share"), [("float32", 0), ("bfloat16", 1)])
def test_on_a_cpu_weights_of_the_stored_type_are_pages_of_their_file_while_it_loads(
    model_folder: Callable[[str], Path], dtype: str, share: int
) -> None:
    asked = question(model_folder("llama"), of(dtype=dtype, compute_packed=False))  # the folder has float32
    said = memory_need.need(dataclasses.replace(asked, quantization=QuantizationPolicy(scheme="int8")))
    assert said.loading_bytes == share * memory_need.need(asked).weights_bytes


def test_the_size_of_a_block_is_that_of_the_kernels() -> None:
    layer = LinearShape("a", 64, 96)
    for scheme, num_bits in (("int8", 8), ("int4", 4)):
        method = Method(scheme, "weights")  # type: ignore[arg-type]
        decisions = [Decision(layer, method, "")]
        assert planned_bytes(decisions, itemsize=2, device="cpu") == 2 * 3 * block_bytes(num_bits)


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


def test_ranks_are_planned_where_prompts_can_be_long_and_layers_divided(model_folder: Callable[[str], Path]) -> None:
    devices = Capacity(names=("cuda:0", "cuda:1"))

    def shape(name: str, **options: Any) -> ParallelShape:
        return memory_need.parallel_shape(question(model_folder(name), of(**options), device="cuda:0"))

    def planned(found: ParallelShape) -> ParallelChoice:
        return choose(dataclasses.replace(found, num_layers=32, head_dim=128, parameters=8_000_000_000), devices, None)

    long = shape("llama-long")
    assert (long.num_heads, long.num_kv_heads, long.head_dim, long.num_layers, long.num_tokens) == (6, 2, 8, 3, 4096)
    assert planned(long).degrees.context == 2
    for refused in (shape("llama-long", max_model_len=1024), shape("mistral-sliding", parallel_prompt_tokens=16)):
        choice = planned(refused)
        assert choice.degrees == Degrees()
        assert "its tokens can't be shared" in choice.reasons[0]
    assert planned(shape("llama-long", max_model_len=1024, parallel_prompt_tokens=512)).degrees.context == 2
    assert choose(long, Capacity(names=("cpu",)), None).degrees == Degrees()
