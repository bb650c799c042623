"""Long prompts that several ranks compute, beside one process, in float32."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sixfold.core.parallel.degrees import Degrees
from tests.core.parallel.processes import run_ranks
from tests.plugins.llm.prefill_cases import CUTS, all_cases, answers_alone, prompt

MODES = {
    "ulysses of 2": Degrees(context=2, ulysses=2),
    "ring of 2": Degrees(context=2),
    "ring of 4": Degrees(context=4),
    "2 x 2": Degrees(context=4, ulysses=2),
}
MODELS = ("llama", "qwen3")


@pytest.fixture(scope="module")
def found(model_folder: Callable[[str], Path]) -> dict[str, dict[str, Any]]:
    """What rank 0 gives in each mode."""
    work = functools.partial(all_cases, {name: model_folder(name) for name in MODELS})
    return {mode: ranks[0] for mode, ranks in zip(MODES, run_ranks(work, *MODES.values()), strict=True)}


@pytest.fixture(scope="module")
def alone(model_folder: Callable[[str], Path], load_tiny: Callable[..., Any]) -> dict[str, Any]:
    """The same models in one process."""
    return {name: load_tiny(model_folder(name)) for name in MODELS}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_answers_in_any_company_are_those_of_one_process_token_for_token(
    found: dict[str, dict[str, Any]], alone: dict[str, Any], name: str, mode: str
) -> None:
    texts, num_divided, num_preemptions, num_found = found[mode][f"{name} company"]
    assert texts == answers_alone(alone[name])
    assert num_divided >= 5
    assert num_preemptions >= 1
    assert num_found > 0  # prompts that began alike, or had been preempted, went on behind what was there


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_logits_do_not_depend_on_how_a_prompt_is_cut_and_divided(
    found: dict[str, dict[str, Any]], alone: dict[str, Any], name: str, mode: str
) -> None:
    tokens = list(prompt(131, 9))
    expected = alone[name]._decoder.run([tokens], (131,))
    largest = expected.abs().max()
    ways = found[mode][f"{name} logits"]
    assert len(ways) == len(CUTS)
    for logits in ways:
        assert float((torch.tensor(logits) - expected).abs().max() / largest) <= 1e-5
