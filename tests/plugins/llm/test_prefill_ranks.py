"""Long prompts that several ranks compute, beside one process, in float32."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sixfold.core.errors import ConfigError
from sixfold.core.family import LoadContext
from sixfold.core.parallel.degrees import Degrees
from sixfold.plugins.llm.loader import load
from sixfold.plugins.llm.options import TransformersOptions
from tests.core.parallel.processes import run_ranks
from tests.plugins.llm.prefill_cases import (
    CACHE_OF_BYTES,
    COMPANY,
    CUTS,
    FIRST,
    TOGETHER,
    all_cases,
    answers_alone,
    prompt,
)

MODES = {
    "ring of 2": FIRST,
    "ulysses of 2": Degrees(context=2, ulysses=2),
    "ring of 4": Degrees(context=4),
    "2 x 2": Degrees(context=4, ulysses=2),
}


@pytest.fixture(scope="module")
def found(model_folder: Callable[[str], Path]) -> dict[str, dict[str, Any]]:
    """What rank 0 gives in each mode."""
    work = functools.partial(all_cases, {name: model_folder(name) for name in ("llama", "qwen3", "mistral-sliding")})
    return {mode: ranks[0] for mode, ranks in zip(MODES, run_ranks(work, *MODES.values(), timeout_s=300), strict=True)}


@pytest.fixture(scope="module")
def alone(model_folder: Callable[[str], Path], load_tiny: Callable[..., Any]) -> Callable[[str], Any]:
    """The model of a mode in one process."""
    models = {2: load_tiny(model_folder("llama")), 4: load_tiny(model_folder("qwen3"))}
    return lambda mode: models[MODES[mode].context]


@pytest.mark.parametrize("mode", MODES)
def test_answers_in_any_company_are_those_of_one_process_token_for_token(
    found: dict[str, dict[str, Any]], alone: Callable[[str], Any], mode: str
) -> None:
    at_once, num_at_once, texts, num_divided, num_preemptions, num_found = found[mode]["company"]
    assert at_once == answers_alone(alone(mode), TOGETHER)
    assert num_at_once == 1
    assert texts == answers_alone(alone(mode), COMPANY)
    assert num_divided >= 5
    assert num_preemptions >= 1
    assert num_found > 0  # prompts that began alike, or had been preempted, went on behind what was there


@pytest.mark.parametrize("mode", MODES)
def test_logits_do_not_depend_on_how_a_prompt_is_cut_and_divided(
    found: dict[str, dict[str, Any]], alone: Callable[[str], Any], mode: str
) -> None:
    ways = found[mode]["logits"]
    assert len(ways) == len(CUTS)
    expected = alone(mode)._decoder.run([list(prompt(131, 9))], (131,))
    for logits in ways:
        assert difference(expected, logits) <= 1e-5


def test_a_cache_of_bytes_keeps_what_it_keeps_in_one_process(
    found: dict[str, dict[str, Any]], model_folder: Callable[[str], Path], load_tiny: Callable[..., Any]
) -> None:
    alone = load_tiny(model_folder("llama"), quantization=CACHE_OF_BYTES)
    expected = alone._decoder.run([list(prompt(131, 9))], (131,))
    for logits in found["ring of 2"]["cache of bytes"]:
        assert difference(expected, logits) <= 1e-3  # a rounding may turn at a tie, and is a hundredth


def test_layers_with_a_window_are_refused_when_the_model_starts(found: dict[str, dict[str, Any]]) -> None:
    refusal = found["ring of 2"]["window"]
    assert refusal == (
        "models.tiny.parallel: its layers look back through a window only, which can't be divided among ranks yet. Remove "
        "'parallel'."
    )


def test_ranks_that_compute_something_else_are_refused_when_the_model_starts(found: dict[str, dict[str, Any]]) -> None:
    refusal = found["ring of 2"]["other weights"]
    assert "models.tiny.parallel: divided as context 2" in refusal
    assert "gives other logits than in one process" in refusal


@pytest.mark.parametrize(
    ("degrees", "options", "message"),
    [
        (Degrees(cfg=2), {}, "share the tokens of long prompts, and that is 'context'"),
        (Degrees(data=2, context=2), {}, "or use 'replicas' for more requests at once"),
        (
            Degrees(context=2),
            {"speculation": {"method": "eagle3", "source": "file:/x"}},
            "Choose another speculation.method",
        ),
    ],
)
def test_what_ranks_can_not_compute_is_refused_before_weights_are_read(
    degrees: Degrees, options: dict[str, Any], message: str
) -> None:
    parallel: Any = SimpleNamespace(degrees=degrees)
    chosen = TransformersOptions.model_validate(options)
    nowhere = LoadContext(
        model_name="a", path=Path("/nowhere"), device="cpu", num_threads=1, options=chosen, parallel=parallel
    )
    with pytest.raises(ConfigError, match=message):
        load(nowhere)


def difference(expected: torch.Tensor, logits: Any) -> float:
    return float((torch.tensor(logits) - expected).abs().max() / expected.abs().max())
