"""Adapters as PEFT saves them are read by its formulas; what would be computed otherwise is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sixfold.core.errors import ConfigError, ModelNotFound
from sixfold.plugins.llm.lora_adapter import Adapter, ModuleShape
from sixfold.plugins.llm.lora_files import read_adapter
from sixfold.plugins.llm.lora_linears import linear_shapes
from sixfold.plugins.llm.lora_options import LoraOptions
from sixfold.plugins.llm.lora_table import AdapterTable
from tests.plugins.llm.lora_folders import SAFETENSORS, merged_model, stock_model, write_adapter

CPU = torch.device("cpu")


def shapes_of(base: Path) -> dict[str, ModuleShape]:
    model = stock_model(base)
    return linear_shapes(model, model)


@pytest.fixture
def base(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("llama")


def read(folder: Path, base: Path, *, max_rank: int = 64) -> Adapter:
    shapes = shapes_of(base)
    return read_adapter(folder, name="a", shapes=shapes, max_rank=max_rank, dtype=torch.float32, device=CPU)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = SAFETENSORS.load_file(path)
    change(tensors)
    SAFETENSORS.save_file(tensors, path)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"lora_alpha": 3.5},
        {"rank_pattern": {"q_proj": 2, "model.layers.1.mlp.up_proj": 6}},
        {"alpha_pattern": {"q_proj": 1, "layers.1.mlp.up_proj": 9, ".*down_proj": 2}},
        {"use_rslora": True, "rank_pattern": {"v_proj": 9}, "alpha_pattern": {"v_proj": 5}},
    ],
)
def test_products_are_those_of_pefts_formulas(config: dict[str, Any], base: Path, tmp_path: Path) -> None:
    adapter = read(write_adapter(tmp_path / "a", base, seed=1, **config), base)
    stock, merged = stock_model(base), merged_model(base, tmp_path / "a")
    assert len(adapter.layers) == 21
    assert adapter.rank == max(pair.rank for pair in adapter.layers.values())
    for name, pair in adapter.layers.items():
        expected = merged.get_submodule(name).weight - stock.get_submodule(name).weight
        torch.testing.assert_close(pair.up @ pair.down, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias: all"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "aLoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"peft_type": "IA3"}, "type IA3"),
        ({"use_dora": True, "bias": "lora_only"}, "DoRA and biases"),
        ({"lora_alpha": "much"}, "lora_alpha"),
        ({"alpha_pattern": {"(": 1}}, "not what PEFT writes"),
    ],
)
def test_what_is_not_a_plain_lora_is_refused_by_name(
    config: dict[str, Any], named: str, base: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "a", base, seed=1)
    change_config(folder, **config)
    with pytest.raises(ConfigError, match=named):
        read(folder, base)


def drop_half(tensors: dict[str, Tensor]) -> None:
    del tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"]


def add_embedding(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.zeros(2, 2)


def add_head(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.lm_head.lora_A.weight"] = torch.zeros(2, 48)
    tensors["base_model.model.lm_head.lora_B.weight"] = torch.zeros(260, 2)


def widen(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"] = torch.zeros(4, 50)


def empty(tensors: dict[str, Tensor]) -> None:
    tensors.clear()


def spoil(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"][0, 0] = torch.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_half, "one of lora_A and lora_B only"),
        (add_embedding, "no LoRA of a linear layer"),
        (add_head, "lm_head is no linear layer within"),
        (widen, "made for another model"),
        (spoil, "not finite"),
        (empty, "no weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Tensor]], None], message: str, base: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "a", base, seed=1)
    change_weights(folder, change)
    with pytest.raises(ConfigError, match=message):
        read(folder, base)


def test_files_that_are_missing_or_damaged_are_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapter_config\.json"):
        read(tmp_path, base)
    folder = write_adapter(tmp_path / "a", base, seed=1)
    (folder / "adapter_model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ConfigError, match=r"adapter_model\.safetensors can't be read"):
        read(folder, base)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match="pickled weights are not loaded"):
        read(folder, base)


def test_a_rank_above_the_limit_is_refused(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", base, seed=1, rank=8)
    with pytest.raises(ConfigError, match=r"rank of 8 exceeds lora\.max_rank \(7\)"):
        read(folder, base, max_rank=7)


def test_identities_are_those_of_the_content(base: Path, tmp_path: Path) -> None:
    one, same, other = (
        read(write_adapter(tmp_path / name, base, seed=seed, targets=("q_proj",)), base)
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    assert one.identity == same.identity != other.identity
    change_config(tmp_path / "same", lora_alpha=77)
    assert read(tmp_path / "same", base).identity != one.identity


def test_an_adapter_in_use_leaves_with_its_last_user(base: Path, tmp_path: Path) -> None:
    folders = {n: write_adapter(tmp_path / n, base, seed=i, targets=("q_proj",)) for i, n in enumerate("abc")}
    table = AdapterTable(shapes_of(base), dtype=torch.float32, device=CPU, max_adapters=2, max_rank=8)
    table.follow(options(folders, "a", "b"))
    used = table.find("a")
    table.follow(options(folders, "b"))
    with pytest.raises(ModelNotFound):
        table.find("a")
    assert table.num_loaded == 2
    with pytest.raises(ConfigError, match="leave with the last request"):
        table.follow(options(folders, "b", "c"))
    assert table.find("b").name == "b"
    del used
    assert table.num_loaded == 1
    table.follow(options(folders, "b", "c"))
    assert table.num_loaded == 2


def test_a_table_is_as_before_if_one_adapter_of_several_can_not_be_had(base: Path, tmp_path: Path) -> None:
    folders = {n: write_adapter(tmp_path / n, base, seed=1, targets=("q_proj",)) for n in "ab"}
    table = AdapterTable(shapes_of(base), dtype=torch.float32, device=CPU, max_adapters=9, max_rank=8)
    table.follow(options(folders, "a"))
    kept = table.find("a")
    with pytest.raises(ConfigError):
        table.follow(options(folders | {"none": tmp_path / "none"}, "b", "none"))
    assert table.find("a") is kept
    with pytest.raises(ModelNotFound):
        table.find("b")
    assert table.num_loaded == 1


def options(folders: dict[str, Path], *names: str) -> LoraOptions:
    given = {name: {"source": f"file:{folders[name]}", "path": str(folders[name])} for name in names}
    return LoraOptions.model_validate({"adapters": given})
