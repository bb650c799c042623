"""The README's calls, executed as they are written, against a server of the demo models."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.models

ROOT = Path(__file__).resolve().parents[2]


def blocks(language: str) -> list[str]:
    """The README's code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def here(block: str, server: Any) -> str:
    """The block with the port of the test's server."""
    assert "http://127.0.0.1:8000" in block
    return block.replace("http://127.0.0.1:8000", server.url)


def test_the_curl_call_answers_paris(six_server: Any) -> None:
    (block,) = blocks("bash")
    done = subprocess.run(["bash", "-c", here(block, six_server)], capture_output=True, text=True, check=True)
    assert "Paris" in json.loads(done.stdout)["choices"][0]["message"]["content"]


def test_the_python_program_uses_all_six_modalities(six_server: Any) -> None:
    (block,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", here(block, six_server)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert "\n2 vectors of 384 dimensions\nThe patient is awake.\n" in done.stdout
    assert done.stdout.endswith("1 picture; clip completed\n")


def test_the_configuration_example_is_valid(tmp_path: Path) -> None:
    from sixfold.core.config import load_config

    (block,) = blocks("yaml")
    path = tmp_path / "example.yaml"
    path.write_text(block)
    settings = load_config(path)
    assert set(settings.models) == set(yaml.safe_load(block)["models"])


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    (block,) = blocks("sh")
    targets = [line.split()[1] for line in block.splitlines()]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_three_calls_that_serve_prints_can_be_pasted(demo_server: Any) -> None:
    from sixfold.core.cli.serve import start_message
    from sixfold.core.plugins import load_plugins

    plugins = load_plugins()
    served = {
        "chat": plugins.families["llm/transformers"],
        "embed": plugins.families["embedding/sentence-transformers"],
    }
    _headline, *calls = start_message(plugins, served, demo_server.url).strip().split("\n\n")
    assert len(calls) == 3
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    outputs = [
        subprocess.run(["bash", "-c", call], capture_output=True, text=True, env=env, check=True) for call in calls
    ]
    assert all(output.stdout.strip() for output in outputs)
    answers = [
        json.loads(output.stdout) for call, output in zip(calls, outputs, strict=True) if call.startswith("curl")
    ]
    assert all("error" not in answer for answer in answers)
