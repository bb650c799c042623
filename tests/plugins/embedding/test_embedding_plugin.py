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


ONE_LABEL = {"id2label": {"0": "LABEL_0"}, "architectures": ["BertForSequenceClassification"]}


@pytest.mark.parametrize(
    ("files", "family"),
    [
        ({"config_sentence_transformers.json": {"model_type": "CrossEncoder"}}, "embedding/cross-encoder"),
        ({"config.json": {"model_type": "bert", **ONE_LABEL}}, "embedding/cross-encoder"),
        ({"config.json": {"model_type": "bert", **ONE_LABEL, "id2label": {"0": "A", "1": "B"}}}, None),
        ({"config.json": {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}}, None),
        ({"config.json": {"model_type": "clip", "architectures": ["CLIPModel"]}}, "embedding/clip"),
        ({"config.json": {"model_type": "siglip"}, "modules.json": []}, "embedding/clip"),
        ({"config.json": {"model_type": "bert", "architectures": ["BertModel"]}}, "embedding/sentence-transformers"),
    ],
)
def test_one_family_alone_claims_a_model(files: dict[str, Any], family: str | None, tmp_path: Path) -> None:
    scores = {
        plugin.FAMILY.name: plugin.detect(folder(tmp_path, files)),
        plugin.CROSS_ENCODER.name: plugin.detect_cross_encoder(ModelFiles(tmp_path)),
        plugin.CLIP.name: plugin.detect_clip(ModelFiles(tmp_path)),
    }
    assert {name for name, score in scores.items() if score} == ({family} if family else set())


def test_the_plugin_registers_its_families_and_its_api() -> None:
    manager = new_manager()
    manager.register(plugin, name="embedding")
    plugins = Plugins(manager)
    assert set(plugins.families) == {
        "embedding/sentence-transformers",
        "embedding/cross-encoder",
        "embedding/clip",
        "embedding/vllm",
    }
    assert set(plugins.apis) == {"embedding"}


def test_the_serving_process_imports_no_model_library() -> None:
    code = (
        "import sys, sixfold.plugins.embedding.plugin, sixfold.plugins.embedding.api;"
        "print([m for m in ('torch', 'transformers', 'sentence_transformers', 'tokenizers', 'PIL') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
