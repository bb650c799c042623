"""Adapters answer as stock models do into which they were merged, whoever shares their steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sixfold.core.batching.model import Granted
from sixfold.core.errors import ModelNotFound
from sixfold.plugins.llm.fused_layer import FusedLayer
from sixfold.plugins.llm.generation import CompletionInput, SamplingParams
from sixfold.plugins.llm.model import TransformersModel
from sixfold.plugins.llm.options import TransformersOptions
from sixfold.plugins.llm.text_codec import TextCodec
from tests.plugins.llm.conftest import EOS_ID, numbered
from tests.plugins.llm.lora_folders import ATTENTION, MLP, merged_model, stock_model, write_adapter

PROMPTS = ((1, 2, 3), tuple(range(40, 75)), (7, 8, 9, 10) * 5, (200,))
NUM_TOKENS = 24
DTYPES = (torch.float32, torch.bfloat16)


def greedy(model: Any, prompt: tuple[int, ...]) -> list[int]:
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NUM_TOKENS,
        min_new_tokens=NUM_TOKENS,
        do_sample=False,
        pad_token_id=EOS_ID,
    )
    answer: list[int] = output[0, len(prompt) :].tolist()
    return answer


def asking(prompt: tuple[int, ...], adapter: str | None) -> CompletionInput:
    # min_tokens as in the reference: the end token is never chosen. logprobs name the tokens.
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS, num_top_logprobs=0)
    return CompletionInput(prompts=(prompt,), params=params, adapter=adapter)


def stock_logits(
    base: Path, folders: list[Path], place: int | None, prompts: list[list[int]], dtype: torch.dtype
) -> Tensor:
    model = (stock_model(base) if place is None else merged_model(base, folders[place])).to(dtype)
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor(prompts)).logits[:, -1].float()
    return logits


def relative(found: Tensor, expected: Tensor) -> float:
    return float(((found.float() - expected).square().sum() / expected.square().sum()).sqrt())


def tokens_of(driven: Any) -> list[bytes]:
    return [token.chosen.raw for token in driven.generation.choices[0].logprobs]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("llama", ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
        ("llama-tied-bias", ("q_proj", "v_proj")),
        ("qwen3", ("k_proj", "up_proj", "down_proj")),
        ("mistral-sliding", ("q_proj", "gate_proj", "o_proj")),
        ("phi3", ("qkv_proj", "gate_up_proj", "o_proj")),
        ("gpt2", ("c_attn", "c_proj", "c_fc")),
        ("mixtral", ("q_proj", "o_proj")),
    ],
)
def test_a_mixed_batch_answers_token_for_token_as_merged_models_do(
    name: str,
    targets: tuple[str, ...],
    packed: bool,
    model_folder: Callable[[str], Path],
    load_tiny: Callable[..., TransformersModel],
    run: Callable[..., Any],
    tmp_path: Path,
) -> None:
    base = model_folder(name)
    folders = {
        "a": write_adapter(tmp_path / "a", base, seed=1, targets=targets),
        "b": write_adapter(tmp_path / "b", base, seed=2, targets=targets[:1], rank=7, use_rslora=True),
    }
    adapters = {key: f"file:{folder}" for key, folder in folders.items()}
    model = load_tiny(base, lora={"adapters": adapters}, compute_packed=packed)
    oracles: dict[str | None, Any] = {key: merged_model(base, folder) for key, folder in folders.items()}
    oracles[None] = stock_model(base)
    wanted = [(prompt, adapter) for prompt in PROMPTS for adapter in (None, "a", "b")]
    codec = TextCodec.load(base)
    expected = [[codec.token_bytes(t) for t in greedy(oracles[adapter], prompt)] for prompt, adapter in wanted]
    assert len({tuple(tokens) for tokens in expected}) > len(PROMPTS)
    for seed in (None, 1, 2):
        found = run(model, [asking(prompt, adapter) for prompt, adapter in wanted], seed)
        assert [tokens_of(driven) for driven in found] == expected


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("targets", [ATTENTION + MLP, ("v_proj", "gate_proj")])
def test_fused_layers_with_adapters_are_as_near_to_float32_as_merged_stock_models_in_bfloat16(
    name: str,
    targets: tuple[str, ...],
    model_folder: Callable[[str], Path],
    load_tiny: Callable[..., Any],
    tmp_path: Path,
) -> None:
    base = model_folder(name)
    folders = [write_adapter(tmp_path / str(seed), base, seed=seed, targets=targets) for seed in (1, 2)]
    sources = {str(place): f"file:{folder}" for place, folder in enumerate(folders)}
    model = load_tiny(base, dtype="bfloat16", lora={"adapters": sources})
    decoder, table = model._decoder, model._adapters
    assert any(isinstance(module, FusedLayer) for module in decoder._model.modules())
    prompts = np.random.default_rng(0).integers(0, 250, (24, 60)).tolist()
    places = [0, 1, None] * 8
    exact, rounded = (
        torch.stack([logits[place][row] for row, place in enumerate(places)])
        for logits in ({p: stock_logits(base, folders, p, prompts, dtype) for p in (0, 1, None)} for dtype in DTYPES)
    )
    adapters = [None if place is None else table.find(str(place)) for place in places]
    # What an adapter adds is rounded once more than where it is merged: 1.23 times on a CPU with AVX2 alone.
    allowed = 1.3 * relative(rounded, exact)
    for chunks in ([60], [30, 20, 10], [57, 1, 1, 1]):
        assert relative(decoder.run(prompts, chunks, adapters=adapters), exact) < allowed


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-5), ("bfloat16", 0.03)])
def test_a_step_with_adapters_changes_nothing_for_the_rows_without(
    dtype: str, rounding: float, model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    base = model_folder("llama")
    folder = write_adapter(tmp_path / "a", base, seed=1)
    model = load_tiny(base, dtype=dtype, lora={"adapters": {"a": f"file:{folder}"}})
    decoder, adapter = model._decoder, model._adapters.find("a")
    prompts = np.random.default_rng(1).integers(0, 250, (4, 23)).tolist()
    without = load_tiny(base, dtype=dtype)._decoder.run(prompts)
    mixed = decoder.run(prompts, adapters=[None, adapter, None, adapter])
    # Steps with adapters take other products, which round otherwise: on processors with AMX by 1.6% of the largest value.
    atol = rounding * float(without.abs().max())
    assert torch.allclose(mixed[[0, 2]], without[[0, 2]], atol=atol, rtol=0)
    assert torch.equal(decoder.run(prompts), without)
    alone = decoder.run(prompts, adapters=[adapter] * 4)
    assert torch.allclose(mixed[[1, 3]], alone[[1, 3]], atol=atol, rtol=0)
    assert not torch.allclose(alone, without, atol=2 * atol, rtol=0)


def test_overflow_under_one_adapter_spoils_no_other_row(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    base = model_folder("llama")
    calm = write_adapter(tmp_path / "calm", base, seed=1)
    wild = write_adapter(tmp_path / "wild", base, seed=2, strength=3e37)
    model = load_tiny(base, lora={"adapters": {"calm": f"file:{calm}", "wild": f"file:{wild}"}})
    decoder, table = model._decoder, model._adapters
    prompts = np.random.default_rng(1).integers(0, 250, (3, 23)).tolist()
    found = decoder.run(prompts, adapters=[None, table.find("calm"), table.find("wild")])
    assert torch.isfinite(found[:2]).all()
    assert not torch.isfinite(found[2]).all()


def test_prefixes_are_shared_within_an_adapter_and_never_between_them(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], run: Callable[..., Any], tmp_path: Path
) -> None:
    base = model_folder("llama")
    folders = {name: write_adapter(tmp_path / name, base, seed=seed) for name, seed in (("a", 1), ("b", 2))}
    model = load_tiny(base, lora={"adapters": {name: f"file:{folder}" for name, folder in folders.items()}})
    heard: list[tuple[str | None, int]] = []
    model._cache.prefix.listener = Listener(heard)
    prompt = tuple(range(64))
    answers: dict[str | None, list[bytes]] = {}
    for adapter in (None, "a", "b"):
        (first,) = run(model, [asking(prompt, adapter)])
        (again,) = run(model, [asking(prompt, adapter)])
        assert first.finish.usage.counts["cached_tokens"] == 0
        assert again.finish.usage.counts["cached_tokens"] == 48
        answers[adapter] = tokens_of(first)
        assert tokens_of(again) == answers[adapter]
    assert len({tuple(tokens) for tokens in answers.values()}) == 3
    assert {adapter for adapter, _ in heard} == {None, "a", "b"}
    # An adapter of other content under a name that was in use finds nothing of the earlier one.
    model.adjust(with_adapters({}))
    model.adjust(with_adapters({"a": folders["b"]}))
    (other,) = run(model, [asking(prompt, "a")])
    assert tokens_of(other) == answers["b"]
    assert other.finish.usage.counts["cached_tokens"] == 48  # those of "b": the content counts, not the name


class Listener:
    """Hears which adapter's blocks were stored."""

    def __init__(self, heard: list[tuple[str | None, int]]) -> None:
        self._heard = heard

    def stored(self, hashes: Any, parent: bytes, token_ids: Any, adapter: str | None = None) -> None:
        self._heard.append((adapter, len(hashes)))

    def removed(self, content: bytes) -> None:
        raise AssertionError("the cache is large enough")


def with_adapters(folders: dict[str, Path]) -> TransformersOptions:
    given = {name: {"source": f"file:{folder}", "path": str(folder)} for name, folder in folders.items()}
    return TransformersOptions.model_validate({"lora": {"adapters": given}})


@pytest.mark.parametrize("method", ["ngram", "draft"])
def test_guesses_change_no_answer_of_an_adapter(
    method: str,
    model_folder: Callable[[str], Path],
    load_tiny: Callable[..., Any],
    run: Callable[..., Any],
    tmp_path: Path,
) -> None:
    base = model_folder("llama")
    folder = write_adapter(tmp_path / "a", base, seed=1, strength=0.1)
    lora = {"adapters": {"a": f"file:{folder}"}}
    guessing = {"method": method} | ({"source": f"file:{base}"} if method == "draft" else {})
    asked = [asking(prompt, adapter) for prompt in PROMPTS for adapter in (None, "a")]
    plain = run(load_tiny(base, lora=lora, speculation={"method": "off"}), asked)
    model = load_tiny(base, lora=lora, speculation=guessing)
    for seed in (None, 1):
        assert [tokens_of(d) for d in run(model, asked, seed)] == [tokens_of(d) for d in plain]
    assert model.stats()["spec_decode_num_accepted_tokens_total"] > 0


def test_a_running_answer_keeps_the_adapter_that_is_unloaded_meanwhile(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], run: Callable[..., Any], tmp_path: Path
) -> None:
    base = model_folder("llama")
    folders = {name: write_adapter(tmp_path / name, base, seed=seed) for name, seed in (("a", 1), ("b", 2))}
    model = load_tiny(base, lora={"adapters": {"a": f"file:{folders['a']}"}})
    (expected,) = run(model, [asking(PROMPTS[0], "a")])
    request = numbered(0, asking(PROMPTS[0], "a"))
    (piece,) = model.split(request)
    (sequence,) = model.prepare(request, piece)
    done, num_steps = False, 0
    while not done:
        if num_steps == 3:
            model.adjust(with_adapters({"b": folders["b"]}))
            assert model.stats()["lora_adapters_loaded"] == 2
        units = model.reserve(sequence, model.cost(sequence).units)
        (outcome,) = model.step([Granted(sequence, units)])
        done, num_steps = outcome.done, num_steps + 1
    model.release(sequence)
    finish: Any = model.finish(request, [sequence])
    assert [t.chosen.raw for t in finish.result.choices[0].logprobs] == tokens_of(expected)
    del sequence
    assert model.stats()["lora_adapters_loaded"] == 1
    with pytest.raises(ModelNotFound):
        run(model, [asking(PROMPTS[0], "a")])


def test_one_set_of_matrices_serves_steps_with_fewer_adapters(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    base = model_folder("llama")
    folders = {name: write_adapter(tmp_path / name, base, seed=seed, rank=16) for seed, name in enumerate("abcdef")}
    model = load_tiny(base, lora={"adapters": {name: f"file:{folder}" for name, folder in folders.items()}})
    router, decoder = model._decoder.router, model._decoder
    every = [model._adapters.find(name) for name in "abcdef"]
    prompts = np.random.default_rng(2).integers(0, 250, (6, 9)).tolist()
    together = decoder.run(prompts, adapters=every)
    packed = router._packed
    fewer = decoder.run(prompts[:5], adapters=[None, *every[1:5]])
    assert router._packed is packed
    torch.testing.assert_close(fewer[1:], together[1:5], rtol=1e-4, atol=1e-4)
    alone = decoder.run(prompts[:1], adapters=every[:1])
    assert router._packed is not packed
    torch.testing.assert_close(alone[0], together[0], rtol=1e-4, atol=1e-4)
