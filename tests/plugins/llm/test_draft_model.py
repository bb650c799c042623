"""A smaller model's guesses change no answer, survive wrong guesses and preemption, and leave nothing behind."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sixfold.core.errors import ConfigError
from sixfold.plugins.llm.generation import CompletionInput, SamplingParams
from sixfold.plugins.llm.options import SpeculationOptions

PROMPTS = [tuple(random.Random(n).randrange(256) for _ in range(5 + 13 * n)) for n in range(6)]


def drafting(folder: Path, **more: int) -> dict[str, Any]:
    """As the registry hands it to the worker."""
    return {"method": "draft", "source": {"source": f"file:{folder}", "path": str(folder)}, **more}


def completion(prompt: tuple[int, ...], **params: Any) -> CompletionInput:
    fields: dict[str, Any] = {"max_tokens": 30, "ignore_eos": True} | params
    return CompletionInput(prompts=(prompt,), params=SamplingParams(**fields))


@pytest.mark.parametrize("draft", ["llama", "qwen3"])
@pytest.mark.parametrize(
    "params", [{"temperature": 0}, {"temperature": 1.0}, {"temperature": 0.9, "top_p": 0.9, "frequency_penalty": 0.5}]
)
def test_answers_are_those_without_guesses(
    draft: str,
    params: dict[str, Any],
    model_folder: Callable[[str], Path],
    load_tiny: Callable[..., Any],
    driver: type[Any],
) -> None:
    plain = load_tiny(model_folder("llama"), speculation={"method": "off"})
    model = load_tiny(model_folder("llama"), speculation=drafting(model_folder(draft), max_sequences=100))
    draft_pool = model._speculator._proposer._decoder.cache.pool
    inputs = [completion(p, seed=n, **params) for n, p in enumerate(PROMPTS)]
    expected = [d.texts for d in driver(plain).run(inputs)]
    for seed in (None, 1, 2):
        assert [d.texts for d in driver(model, seed).run(inputs)] == expected
        assert draft_pool.num_used == 0
    stats = model.stats()
    drafted, accepted = (stats[f"spec_decode_num_{name}_tokens_total"] for name in ("draft", "accepted"))
    assert drafted > 50
    if draft == "llama":  # its own draft model: by the same random numbers it guesses the same
        assert accepted > 0.9 * drafted


def test_a_draft_cache_without_room_means_fewer_guesses(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], driver: type[Any]
) -> None:
    folder = model_folder("llama")
    model = load_tiny(folder, speculation=drafting(folder, max_sequences=100))
    pool = model._speculator._proposer._decoder.cache.pool
    taken = pool.allocate(pool.num_free - 3)
    inputs = [completion(p, temperature=0) for p in PROMPTS]
    plain = load_tiny(folder, speculation={"method": "off"})
    assert [d.texts for d in driver(model).run(inputs)] == [d.texts for d in driver(plain).run(inputs)]
    assert pool.num_used == len(taken)


def test_a_draft_model_of_another_tokenizer_is_refused(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model_folder("llama"), tmp_path / "other"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="its tokens are not those of the model"):
        load_tiny(model_folder("llama"), speculation=drafting(folder))


def test_a_source_belongs_to_the_method_draft() -> None:
    for wrong in ({"method": "draft"}, {"method": "ngram", "source": "file:/x"}, {"min_match": 4, "max_match": 3}):
        with pytest.raises(ValueError, match="must be"):
            SpeculationOptions.model_validate(wrong)
