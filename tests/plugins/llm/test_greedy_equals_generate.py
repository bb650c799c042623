"""The paged, batched runtime gives token for token what transformers' own ``generate`` gives."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sixfold.core.errors import ConfigError
from sixfold.plugins.llm.generation import CompletionInput, SamplingParams
from sixfold.plugins.llm.text_codec import TextCodec

SERVED = (
    "llama",
    "llama-tied-bias",
    "qwen2",
    "qwen3",
    "mistral",
    "mistral-sliding",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt2",
    "mixtral",
)


def prompts_of(seed: int, count: int) -> list[tuple[int, ...]]:
    source = random.Random(seed)
    return [tuple(source.randrange(256) for _ in range(source.randint(1, 60))) for _ in range(count)]


def generate(folder: Path, prompts: list[tuple[int, ...]], num_tokens: int) -> list[list[int]]:
    models: Any = transformers.AutoModelForCausalLM  # typed in part
    model = models.from_pretrained(folder, dtype=torch.float32).eval()
    answers: list[list[int]] = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=257,
        )
        answers.append(output[0, len(prompt) :].tolist())
    return answers


def greedy(prompt: tuple[int, ...], num_tokens: int) -> CompletionInput:
    # min_tokens as in the reference: the end token is never chosen. logprobs name the tokens.
    params = SamplingParams(temperature=0, max_tokens=num_tokens, min_tokens=num_tokens, num_top_logprobs=0)
    return CompletionInput(prompts=(prompt,), params=params)


def tokens_of(driven: Any) -> list[bytes]:
    return [token.chosen.raw for token in driven.generation.choices[0].logprobs]


@pytest.mark.parametrize("name", SERVED)
def test_greedy_tokens_equal_those_of_generate(
    name: str, model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], run: Callable[..., Any]
) -> None:
    folder = model_folder(name)
    prompts = prompts_of(1, 6)
    expected = generate(folder, prompts, 30)
    model = load_tiny(folder)
    codec = TextCodec.load(folder)
    for seed in (None, 3):
        driven = run(model, [greedy(p, 30) for p in prompts], seed=seed)
        assert [tokens_of(d) for d in driven] == [[codec.token_bytes(t) for t in answer] for answer in expected]


@pytest.mark.parametrize("seed", range(8))
def test_results_do_not_depend_on_who_joins_leaves_or_is_preempted(
    seed: int, llama: Any, run: Callable[..., Any], driver: type[Any]
) -> None:
    source = random.Random(seed)
    inputs = [greedy(prompt, source.randint(1, 40)) for prompt in prompts_of(seed, 12)]
    alone = [tokens_of(run(llama, [item])[0]) for item in inputs]
    together = driver(llama, seed=seed)
    assert [tokens_of(d) for d in together.run(inputs)] == alone
    assert together.largest_batch > 1
    assert together.num_preemptions > 0


def test_a_cache_too_small_for_all_changes_no_result(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], driver: type[Any], run: Callable[..., Any]
) -> None:
    folder = model_folder("llama")
    wide, narrow = load_tiny(folder), load_tiny(folder, kv_cache_bytes=50_000, block_size_tokens=4)
    inputs = [greedy(prompt, 20) for prompt in prompts_of(5, 8)]
    small = driver(narrow, seed=5)
    assert [tokens_of(d) for d in small.run(inputs)] == [tokens_of(d) for d in run(wide, inputs)]


def test_unpacked_weights_give_the_same_tokens(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], run: Callable[..., Any]
) -> None:
    folder = model_folder("qwen3")
    inputs = [greedy(prompt, 20) for prompt in prompts_of(2, 3)]
    packed, plain = load_tiny(folder), load_tiny(folder, compute_packed=False)
    assert [tokens_of(d) for d in run(packed, inputs)] == [tokens_of(d) for d in run(plain, inputs)]


def test_capped_scores_of_a_few_rows_at_a_time_are_those_of_all(
    model_folder: Callable[[str], Path],
    load_tiny: Callable[..., Any],
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load_tiny(model_folder("gemma2"))
    inputs = [greedy(prompt, 8) for prompt in prompts_of(4, 3)]
    whole = [tokens_of(d) for d in run(model, inputs)]
    monkeypatch.setattr("sixfold.plugins.llm.prefill_attention._MAX_SCORES", 700)
    assert [tokens_of(d) for d in run(load_tiny(model_folder("gemma2")), inputs)] == whole


def test_a_decoder_with_attention_sinks_is_refused_by_name(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any]
) -> None:
    with pytest.raises(ConfigError, match=r"GptOssForCausalLM.*s_aux"):
        load_tiny(model_folder("gpt-oss"))
