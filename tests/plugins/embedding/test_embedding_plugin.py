"""What the plugin offers, how it recognises models, and that it costs nothing to import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sixfold.core.family import ModelFiles
from sixfold.core.plugins import Plugins, new_manager
from sixfold.plugins.embedding import plugin


def folder(tmp_path: Path, files: dict[str, Any]) -> ModelFiles:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    return ModelFiles(tmp_path)


@pytest.mark.parametrize(
    ("files", "score"),
    [
        ({"modules.json": []}, 100),
        ({"config_sentence_transformers.json": {"prompts": {}}}, 100),
        ({"config_sentence_transformers.json": {"model_type": "CrossEncoder"}, "modules.json": []}, 0),
        ({"config.json": {"model_type": "bert", "architectures": ["BertModel"]}}, 60),
        ({"config.json": {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}}, 0),
        ({"config.json": {"model_type": "bert", "architectures": ["BertModel"], "is_decoder": True}}, 0),
        ({"config.json": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}}, 0),
        ({"config.json": {"model_type": "whisper", "architectures": ["WhisperModel"]}}, 0),
        ({}, 0),
    ],
)
def test_models_are_recognised_by_their_files(files: dict[str, Any], score: int, tmp_path: Path) -> None:
    assert plugin.detect(folder(tmp_path, files)) == score


def test_the_plugin_registers_its_family_and_its_api() -> None:
    manager = new_manager()
    manager.register(plugin, name="embedding")
    plugins = Plugins(manager)
    assert set(plugins.families) == {"embedding/sentence-transformers"}
    assert set(plugins.apis) == {"embedding"}


def test_the_serving_process_imports_no_model_library() -> None:
    code = (
        "import sys, sixfold.plugins.embedding.plugin, sixfold.plugins.embedding.api;"
        "print([m for m in ('torch', 'transformers', 'sentence_transformers', 'tokenizers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
