"""The plugin claims decoders and nothing else, imports nothing heavy, and converts a GGUF file once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sixfold.core.errors import SourceError
from sixfold.core.family import ModelFiles
from sixfold.plugins.llm import gguf
from sixfold.plugins.llm.plugin import convert_model, detect


def folder(path: Path, config: dict[str, Any], *others: str) -> ModelFiles:
    (path / "config.json").write_text(json.dumps(config))
    for name in others:
        (path / name).write_text("{}")
    return ModelFiles(path)


@pytest.mark.parametrize(
    ("config", "others", "sureness"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, ("tokenizer.json",), 90),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, ("vocab.json",), 90),
        ({"model_type": "llama"}, ("tokenizer.json", "generation_config.json"), 50),
        ({"architectures": ["LlamaForCausalLM"]}, (), 0),
        ({"architectures": ["Qwen3ForCausalLM"]}, ("tokenizer.json", "modules.json"), 0),
        ({"architectures": ["BertModel"], "model_type": "bert"}, ("tokenizer.json",), 0),
        ({"architectures": ["T5ForConditionalGeneration"]}, ("tokenizer.json", "generation_config.json"), 0),
        ({"is_encoder_decoder": True}, ("tokenizer.json", "generation_config.json"), 0),
    ],
)
def test_only_causal_language_models_with_a_tokenizer_are_claimed(
    config: dict[str, Any], others: tuple[str, ...], sureness: int, tmp_path: Path
) -> None:
    assert detect(folder(tmp_path, config, *others)) == sureness


def test_plugin_and_http_face_import_no_model_library() -> None:
    code = (
        "import sys, sixfold.plugins.llm.plugin, sixfold.plugins.llm.api, sixfold.plugins.llm.gguf;"
        "sys.exit(' '.join({'torch', 'transformers', 'tokenizers', 'gguf'} & set(sys.modules)) or None)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (child.returncode, child.stderr) == (0, "")


def ignore_progress(_what: str, _done: int, _total: int | None) -> None:
    pass


def test_a_folder_that_is_a_model_already_is_left_alone(tmp_path: Path) -> None:
    files = folder(tmp_path, {"architectures": ["LlamaForCausalLM"]}, "model.gguf")
    assert convert_model(files, tmp_path / "cache", ignore_progress) is None


def test_a_folder_with_several_gguf_files_is_an_error_that_names_them(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(SourceError, match=r"a\.gguf, b\.gguf"):
        convert_model(ModelFiles(tmp_path), tmp_path / "cache", ignore_progress)


def test_a_conversion_is_kept_under_the_name_of_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "m.gguf"
    runs: list[Path] = []

    def fake_converter(path: Path, work: Path) -> bool:
        runs.append(path)
        (work / "config.json").write_text(path.read_text())
        return True

    monkeypatch.setattr(gguf, "_run_converter", fake_converter)
    source.write_text("one")
    first = convert_model(ModelFiles(source), tmp_path / "cache", ignore_progress)
    again = convert_model(ModelFiles(source), tmp_path / "cache", ignore_progress)
    source.write_text("two")
    second = convert_model(ModelFiles(source), tmp_path / "cache", ignore_progress)
    assert first == again
    assert first != second
    assert len(runs) == 2
    assert second is not None
    assert (second / "config.json").read_text() == "two"
    assert {path.name for path in second.parent.iterdir()} == {first.name if first else "", second.name}


def test_of_two_converters_at_once_the_first_wins_and_both_get_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "m.gguf"
    source.write_text("one")

    def fast_converter(_path: Path, work: Path) -> bool:
        (work / "config.json").write_text("early")
        return True

    def outrun_converter(path: Path, work: Path) -> bool:
        (work / "config.json").write_text("late")
        monkeypatch.setattr(gguf, "_run_converter", fast_converter)
        convert_model(ModelFiles(path), tmp_path / "cache", ignore_progress)
        return True

    monkeypatch.setattr(gguf, "_run_converter", outrun_converter)
    target = convert_model(ModelFiles(source), tmp_path / "cache", ignore_progress)
    assert target is not None
    assert (target / "config.json").read_text() == "early"
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_broken_gguf_file_is_a_source_error_and_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "m.gguf"
    source.write_bytes(b"GGUF nonsense")
    with pytest.raises(SourceError, match=r"m\.gguf can't be converted"):
        convert_model(ModelFiles(source), tmp_path / "cache", ignore_progress)
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []
