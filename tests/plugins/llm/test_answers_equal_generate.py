"""Log probabilities, penalties, stop strings and choices are those of transformers' own ``generate``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import transformers

from sixfold.plugins.llm.generation import CompletionInput, SamplingParams
from sixfold.plugins.llm.text_codec import TextCodec
from tests.plugins.llm.conftest import EOS_ID, byte_tokenizer

PROMPTS = ((72, 101, 108, 108, 111), tuple(range(40, 90)), (200, 3, 200, 3, 200))
NUM_TOKENS = 24


@pytest.fixture(scope="module")
def stock(model_folder: Callable[[str], Path]) -> Any:
    models: Any = transformers.AutoModelForCausalLM  # typed in part
    return models.from_pretrained(model_folder("llama"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def codec(model_folder: Callable[[str], Path]) -> TextCodec:
    return TextCodec.load(model_folder("llama"))


def generate(stock: Any, prompt: tuple[int, ...], **given: Any) -> Any:
    ids = torch.tensor([prompt])
    return stock.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        pad_token_id=257,
        return_dict_in_generate=True,
        **({"min_new_tokens": NUM_TOKENS} | given),
    )


def answer(prompt: tuple[int, ...], n: int = 1, **params: Any) -> CompletionInput:
    wanted = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS, num_top_logprobs=3)
    return CompletionInput(prompts=(prompt,), params=msgspec.structs.replace(wanted, **params), num_choices=n)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_log_probabilities_are_those_of_the_stock_model(
    prompt: tuple[int, ...], stock: Any, llama: Any, run: Callable[..., Any]
) -> None:
    expected = generate(stock, prompt, output_logits=True)
    (driven,) = run(llama, [answer(prompt)])
    tokens = expected.sequences[0, len(prompt) :].tolist()
    rows: Any = torch.stack(expected.logits)[:, 0].float().log_softmax(-1)
    made = driven.generation.choices[0].logprobs
    chosen = [token.chosen.logprob for token in made]
    top = [[alternative.logprob for alternative in token.top] for token in made]
    assert chosen == pytest.approx([float(row[token]) for row, token in zip(rows, tokens, strict=True)], abs=1e-4)
    for mine, theirs in zip(top, rows.topk(3).values.tolist(), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_log_probabilities_of_prompts_are_those_of_the_stock_model_however_they_are_cut(
    seed: int | None, stock: Any, llama: Any, codec: TextCodec, run: Callable[..., Any]
) -> None:
    prompts = (*PROMPTS, (65,))
    inputs = [CompletionInput(prompts=(prompt,), params=answer(prompt).params, echo=True) for prompt in prompts]
    run(llama, [answer(prompt) for prompt in prompts])  # what is in the cache is of no use
    for prompt, driven in zip(prompts, run(llama, inputs, seed), strict=True):
        with torch.inference_mode():
            rows: Any = stock(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
        found = driven.generation.choices[0].logprobs
        assert len(found) == len(prompt) + NUM_TOKENS
        assert [token.chosen.raw for token in found[: len(prompt)]] == [codec.token_bytes(token) for token in prompt]
        assert found[0].top == ()
        for place in range(1, len(prompt)):
            assert found[place].chosen.logprob == pytest.approx(float(rows[place - 1, prompt[place]]), abs=1e-4)
            mine = [alternative.logprob for alternative in found[place].top]
            assert mine == pytest.approx(rows[place - 1].topk(3).values.tolist(), abs=1e-4)
        assert driven.finish.usage.counts["cached_tokens"] == 0


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("penalty", [0.7, 1.3, 2.0])
def test_a_repetition_penalty_gives_the_tokens_of_generate(
    prompt: tuple[int, ...], penalty: float, stock: Any, llama: Any, codec: TextCodec, run: Callable[..., Any]
) -> None:
    expected = generate(stock, prompt, repetition_penalty=penalty).sequences[0, len(prompt) :].tolist()
    (driven,) = run(llama, [answer(prompt, repetition_penalty=penalty)])
    made = [token.chosen.raw for token in driven.generation.choices[0].logprobs]
    assert made == [codec.token_bytes(token) for token in expected]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_stop_string_over_token_borders_ends_where_generate_ends(
    prompt: tuple[int, ...], stock: Any, llama: Any, codec: TextCodec, run: Callable[..., Any]
) -> None:
    (free,) = run(llama, [answer(prompt)])
    text = free.texts[0]
    # A token is a byte here, so two characters are two tokens; both whole, since generate compares bytes.
    stop = next(text[at : at + 2] for at in range(3, len(text)) if text[at : at + 2].isascii())
    assert len(stop) == 2
    ids = generate(stock, prompt, stop_strings=[stop], tokenizer=byte_tokenizer()).sequences
    expected = codec.decode(ids[0, len(prompt) :].tolist())
    no_end = ((EOS_ID, -100.0),)  # as the least length does in generate, which does not hold back its stop strings
    (driven,) = run(llama, [answer(prompt, min_tokens=0, logit_bias=no_end, stop=(stop,), num_top_logprobs=None)])
    assert driven.texts[0] == expected[: expected.index(stop)] == text[: text.index(stop)]
    assert driven.generation.choices[0].finish_reason == "stop"


def test_greedy_choices_are_all_the_answer_of_generate(
    stock: Any, llama: Any, codec: TextCodec, run: Callable[..., Any]
) -> None:
    prompt = PROMPTS[1]
    expected = codec.decode(generate(stock, prompt).sequences[0, len(prompt) :].tolist())
    (driven,) = run(llama, [answer(prompt, n=3)])
    assert [text.rstrip("\ufffd") for text in driven.texts] == [expected.rstrip("\ufffd")] * 3
