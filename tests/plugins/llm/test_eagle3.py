"""EAGLE-3 heads guess what a plain reference guesses, change no answer, and are refused where they do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sixfold.core.errors import ConfigError
from sixfold.plugins.llm.eagle3_files import read_eagle3
from sixfold.plugins.llm.generation import CompletionInput, SamplingParams
from sixfold.plugins.llm.sequence import SequenceState
from tests.plugins.llm.eagle3_reference import SAFETENSORS, ReferenceHead, new_head
from tests.plugins.llm.lora_folders import write_adapter
from tests.plugins.llm.test_lora import PROMPTS, asking, greedy, tokens_of

NUM_GUESSES = 4


def eagle(folder: Path, **more: Any) -> dict[str, Any]:
    return {"method": "eagle3", "source": f"file:{folder}", "num_tokens": NUM_GUESSES} | more


class Recorded:
    """Passes calls on and keeps what was guessed."""

    learns_from_every_step = False

    def __init__(self, model: Any) -> None:
        self._proposer = model._speculator._proposer
        model._speculator._proposer = self
        self.guesses: list[tuple[list[int], list[int]]] = []

    def follow(self, sequences: Sequence[SequenceState]) -> None:
        self._proposer.follow(sequences)

    def propose(self, sequences: Sequence[SequenceState], limits: Sequence[int]) -> Any:
        found = self._proposer.propose(sequences, limits)
        self.guesses += [(list(s.token_ids), list(drafts)) for s, drafts in zip(sequences, found, strict=True)]
        return found

    def release(self, sequence: SequenceState) -> None:
        self._proposer.release(sequence)


@pytest.mark.parametrize(
    ("name", "every", "norms_first"),
    [("llama", 1, False), ("qwen3", 3, True), ("gpt2", 2, False), ("mixtral", 1, True)],
)
def test_guesses_are_those_of_the_reference_whoever_shares_the_steps(
    name: str,
    every: int,
    norms_first: bool,
    model_folder: Callable[[str], Path],
    load_tiny: Callable[..., Any],
    run: Callable[..., Any],
    tmp_path: Path,
) -> None:
    base = model_folder(name)
    head = new_head(base, every=every, norms_first=norms_first)
    model = load_tiny(base, speculation=eagle(head.save(tmp_path)), prefix_cache="off")
    plain = load_tiny(base, speculation={"method": "off"})
    asked = [asking(prompt, None) for prompt in PROMPTS]
    expected = [tokens_of(driven) for driven in run(plain, asked)]
    recorded = Recorded(model)
    for seed in (None, 1, 2):
        assert [tokens_of(driven) for driven in run(model, asked, seed)] == expected
    full = [(known, drafts) for known, drafts in recorded.guesses if drafts]
    assert len(full) > 30
    assert max(len(drafts) for _, drafts in full) > 1
    for known, drafts in full:
        assert drafts == head.guess(known, len(drafts))
    assert not model._speculator._proposer._proposer._followed


@pytest.fixture(scope="module")
def trained(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and a head that has learnt how it goes on after the prompts."""
    base = model_folder("llama")
    head = new_head(base)
    head.train_on([[*prompt, *greedy(head.base[0], prompt)] for prompt in PROMPTS], num_steps=200)
    return base, head.save(tmp_path_factory.mktemp("head"))


def test_a_trained_head_saves_steps_and_changes_no_answer(
    trained: tuple[Path, Path], load_tiny: Callable[..., Any], run: Callable[..., Any]
) -> None:
    base, head = trained
    asked = [
        CompletionInput(
            prompts=(prompt,),
            params=SamplingParams(max_tokens=40, seed=3, temperature=temperature, num_top_logprobs=0),
        )
        for prompt in PROMPTS
        for temperature in (0.0, 0.7)
    ]
    expected = [tokens_of(driven) for driven in run(load_tiny(base, speculation={"method": "off"}), asked)]
    model = load_tiny(base, speculation=eagle(head))
    for seed in (None, 1):
        assert [tokens_of(driven) for driven in run(model, asked, seed)] == expected
    stats = model.stats()
    assert stats["spec_decode_num_accepted_tokens_total"] > 0.3 * stats["spec_decode_num_draft_tokens_total"] > 0


def test_a_cached_prefix_holds_the_heads_part_of_it(
    trained: tuple[Path, Path], load_tiny: Callable[..., Any], run: Callable[..., Any]
) -> None:
    base, head = trained
    model = load_tiny(base, speculation=eagle(head))
    recorded = Recorded(model)
    prompt = tuple(range(100, 170))
    run(model, [asking(prompt, None)])
    first, recorded.guesses = recorded.guesses, []
    (again,) = run(model, [asking(prompt, None)])
    assert again.finish.usage.counts["cached_tokens"] == 64
    assert recorded.guesses == first


def test_steps_that_are_too_large_for_guesses_are_followed_all_the_same(
    trained: tuple[Path, Path], load_tiny: Callable[..., Any], run: Callable[..., Any]
) -> None:
    base, head = trained
    alone = load_tiny(base, speculation=eagle(head))
    expected = Recorded(alone)
    run(alone, [asking(PROMPTS[1], None)])
    model = load_tiny(base, speculation=eagle(head, max_sequences=1))
    recorded = Recorded(model)
    short = CompletionInput(prompts=((5,),), params=SamplingParams(max_tokens=6, min_tokens=6, temperature=0))
    run(model, [asking(PROMPTS[1], None), short])
    assert recorded.guesses
    known = {tuple(tokens): drafts for tokens, drafts in expected.guesses}
    compared = [(drafts, known[tuple(tokens)]) for tokens, drafts in recorded.guesses if tuple(tokens) in known]
    assert compared
    for drafts, wanted in compared:
        shorter = min(len(drafts), len(wanted))
        assert drafts[:shorter] == wanted[:shorter]


def test_guesses_for_an_adapter_read_what_the_adapter_made(
    trained: tuple[Path, Path], load_tiny: Callable[..., Any], run: Callable[..., Any], tmp_path: Path
) -> None:
    base, head = trained
    lora = {"adapters": {"a": f"file:{write_adapter(tmp_path / 'a', base, seed=1, strength=0.1)}"}}
    asked = [asking(prompt, adapter) for prompt in PROMPTS[:2] for adapter in (None, "a")]
    expected = [tokens_of(d) for d in run(load_tiny(base, lora=lora, speculation={"method": "off"}), asked)]
    model = load_tiny(base, lora=lora, speculation=eagle(head))
    assert [tokens_of(driven) for driven in run(model, asked, 1)] == expected


def test_fused_bfloat16_layers_are_tapped_as_well(
    trained: tuple[Path, Path], load_tiny: Callable[..., Any], run: Callable[..., Any]
) -> None:
    base, head = trained
    asked = [asking(prompt, None) for prompt in PROMPTS]
    model = load_tiny(base, dtype="bfloat16", speculation=eagle(head))
    run(model, asked)
    stats = model.stats()
    assert stats["spec_decode_num_accepted_tokens_total"] > 0.2 * stats["spec_decode_num_draft_tokens_total"] > 0


def test_without_a_head_nothing_is_tapped_and_the_cache_has_no_layer_for_it(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any]
) -> None:
    decoder = load_tiny(model_folder("llama"))._decoder
    assert not any(module._forward_pre_hooks for module in decoder._model.modules())
    assert len(decoder.cache.tensors) == 3


def drop(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.__delitem__(name)


def put(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.__setitem__(name, tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("fc.weight"), "lacks fc.weight"),
        (drop("midlayer.hidden_norm.weight"), "lacks midlayer.hidden_norm.weight"),
        (drop("d2t"), "lacks d2t"),
        (put("fc.weight", torch.zeros(48, 3 * 64)), "made for another model"),
        (put("d2t", torch.full((130,), 500)), "outside of the vocabulary, or twice"),
        (put("d2t", -torch.arange(130)), "outside of the vocabulary, or twice"),
        (put("midlayer.self_attn.sinks", torch.zeros(4)), "not part of EAGLE-3"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Tensor]], None], message: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    head = new_head(model_folder("llama"), every=2)
    tensors = head.tensors()
    change(tensors)
    folder = saved(head, tmp_path, tensors)
    with pytest.raises(ConfigError, match=message):
        read_eagle3(folder, hidden_size=48, vocab_size=260, place="here")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 2}, "one layer"),
        ({"hidden_act": "gelu"}, "SiLU"),
        ({"eagle_config": {"use_aux_hidden_state": False}}, "read three"),
        ({"hidden_size": 64}, "lacks embed_tokens.weight"),
    ],
)
def test_configs_of_other_heads_are_refused(
    config: dict[str, Any], message: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = new_head(model_folder("llama")).save(tmp_path, **config)
    with pytest.raises(ConfigError, match=message):
        read_eagle3(folder, hidden_size=48, vocab_size=260, place="here")


def test_a_model_without_the_tapped_layers_is_refused_at_load(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    base = model_folder("llama")
    beyond = {"eagle_aux_hidden_state_layer_ids": [1, 2, 3]}
    folder = new_head(base).save(tmp_path, eagle_config=beyond)
    with pytest.raises(ConfigError, match=r"options\.speculation\.source: .* layers \(1, 2, 3\), and the model has 3"):
        load_tiny(base, speculation=eagle(folder))


def test_pickled_heads_are_read_as_tensors_only(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    base = model_folder("llama")
    head = new_head(base)
    folder = head.save(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="neither"):
        read_eagle3(folder, hidden_size=48, vocab_size=260, place="here")
    torch.save(head.tensors(), folder / "pytorch_model.bin")
    files = read_eagle3(folder, hidden_size=48, vocab_size=260, place="here")
    assert torch.equal(files.tensors["fc.weight"], head.tensors()["fc.weight"])
    torch.save({"fc.weight": Path("/")}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="more than tensors"):
        read_eagle3(folder, hidden_size=48, vocab_size=260, place="here")
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="no table of tensors"):
        read_eagle3(folder, hidden_size=48, vocab_size=260, place="here")


def test_taps_are_those_of_the_published_rule_unless_the_head_says_otherwise(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    head = new_head(model_folder("llama"))
    plain = read_eagle3(head.save(tmp_path, eagle_config=None), hidden_size=48, vocab_size=260, place="here")
    assert plain.tap_places(32, "here") == (2, 16, 29)
    with pytest.raises(ConfigError, match="made for another model"):
        plain.tap_places(2, "here")
    own = read_eagle3(head.save(tmp_path), hidden_size=48, vocab_size=260, place="here")
    assert own.tap_places(3, "here") == (1, 2, 0)


def saved(head: ReferenceHead, folder: Path, tensors: dict[str, Tensor]) -> Path:
    head.save(folder)
    SAFETENSORS.save_file(tensors, folder / "model.safetensors")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    return folder
