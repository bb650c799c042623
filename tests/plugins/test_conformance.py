"""The plugins that come with Sixfold keep the promises that are asked of strangers', on the models of the demo."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import shipped_demo

MODELS = {"llm": "chat", "embedding": "embed", "asr": "hear", "tts": "speak", "image": "draw", "video": "film"}
NUM_CHECKS = 11
_QUIET = ("-p", "sixfold.core.testing.pytest_option", "-p", "no:cacheprovider", "-q")


def config_of(model: str, folder: Path) -> Path:
    """The demo with one of its models."""
    data = shipped_demo()
    data["models"] = {model: data["models"][model]}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.timeout(1200)  # the model is loaded twice, and a machine may have other work
@pytest.mark.parametrize("plugin", MODELS)
def test_a_first_party_plugin_is_conformant(plugin: str, tmp_path: Path) -> None:
    config = config_of(MODELS[plugin], tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *_QUIET, "--sixfold-plugin", plugin, str(config)],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    counts = {what: int(count) for count, what in re.findall(r"(\d+) (passed|skipped)", done.stdout)}
    num_skipped = 1 if plugin in ("embedding", "video") else 0  # they have no stream
    assert counts == {"passed": NUM_CHECKS - num_skipped, **({"skipped": 1} if num_skipped else {})}


@pytest.mark.slow
@pytest.mark.models
def test_the_sources_that_come_with_it_are_conformant_where_a_model_is_a_file(tmp_path: Path) -> None:
    config = config_of("draw", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *_QUIET, "--sixfold-plugin", "sources", str(config)],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
