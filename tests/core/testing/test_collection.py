"""``pytest --sixfold-plugin NAME`` as authors call it, and what it does to the runs of others: nothing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_PLUGIN = """
from pathlib import Path
from sixfold.core import Plugin, SourceError

class ShelfSource:
    scheme = "{name}"
    def resolve(self, reference, *, cache_dir, progress):
        if not reference.isalpha():
            raise {error}("{name}:NAME")
        folder = cache_dir / reference
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "model.json").exists():
            (folder / "model.json").write_text("{{}}")
        return folder

PLUGIN = Plugin(sources=[ShelfSource()])
"""
_STONE = """
from sixfold.core import Family, Plugin
from sixfold.plugins.embedding.contract import EmbeddingInput, EmbeddingOutput

def load(context):
    raise TypeError("it sinks")

FAMILY = Family(
    name="embedding/stone", summary="Sinks.", operations=frozenset({"embed"}), loader="stone_plugin:load",
    input_type=EmbeddingInput, output_type=EmbeddingOutput, detect=lambda files: 100 if files.has("stone.json") else 0,
)
PLUGIN = Plugin(families=[FAMILY])
"""
_OWN_TEST = """
import sys

def test_own():
    pass

def test_nothing_is_loaded():
    loaded = {name for name in sys.modules if name.startswith("sixfold.")}
    assert loaded <= {"sixfold.core", "sixfold.core.testing", "sixfold.core.testing.pytest_option"}
    assert "pydantic" not in sys.modules
"""
_RUNS = """
import json, sys, pytest
for arguments in json.loads(sys.argv[1]):
    print("STATUS", int(pytest.main(arguments)), flush=True)
"""
_QUIET = ("-p", "sixfold.core.testing.pytest_option", "-p", "no:cacheprovider", "-v")
_CALLS = {
    "nothing": ("test_own.py",),
    "beside": ("--sixfold-plugin", "shelf", "--sixfold-config", "config.yaml", "-k", "not is_loaded"),
    "beside paths": ("test_own.py", "--sixfold-plugin", "shelf", "--sixfold-config=config.yaml", "-k", "not is_loaded"),
    "in the project": ("-c", "wants.ini", "-k", "not is_loaded"),
    "a path in the project": ("test_own.py", "-c", "wants.ini", "-k", "not is_loaded"),
    "nothing to try": ("test_own.py", "--sixfold-plugin", "shelf"),
    "one check": ("--sixfold-plugin", "shelf", "config.yaml::novel.source::finds_its_files"),
    "broken": ("--sixfold-plugin", "crate", "config.yaml::drama.source::refuses_nonsense"),
    "does not load": ("--sixfold-plugin", "stone", "stone.yaml"),
    "no plugin": ("--sixfold-config", "config.yaml"),
    "no file": ("--sixfold-plugin", "shelf", "--sixfold-config", "nothing.yaml"),
    "misspelt": ("--sixfold-plugin", "self", "config.yaml"),
    "no model": ("--sixfold-plugin", "gateway", "config.yaml"),
    "no configuration": ("--sixfold-plugin", "shelf", "other.yaml"),
}

Runs = dict[str, tuple[int, str]]


def install(site: Path, name: str, *, error: str) -> None:
    info = site / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[sixfold]\n{name} = {name}_plugin:PLUGIN\n")
    (site / f"{name}_plugin.py").write_text(_PLUGIN.format(name=name, error=error))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Status and output of the calls, in a project with tests of its own, by one process where two plugins are installed."""
    project = tmp_path_factory.mktemp("project")
    install(project / "site", "shelf", error="SourceError")
    install(project / "site", "crate", error="KeyError")
    (project / "config.yaml").write_text('models: {novel: {source: "shelf:novel"}, drama: {source: "crate:drama"}}\n')
    install(project / "site", "stone", error="")
    (project / "site" / "stone_plugin.py").write_text(_STONE)
    (project / "stone").mkdir()
    (project / "stone" / "stone.json").write_text("{}")
    (project / "stone.yaml").write_text('models: {rock: {source: "file:stone"}}\n')
    (project / "other.yaml").write_text("nothing: of ours\n")
    (project / "test_own.py").write_text(_OWN_TEST)
    (project / "pytest.ini").write_text("[pytest]\n")
    options = "--sixfold-plugin shelf --sixfold-config config.yaml"
    (project / "wants.ini").write_text(f"[pytest]\naddopts = {options}\n")
    done = subprocess.run(
        [sys.executable, "-c", _RUNS, json.dumps([[*_QUIET, *call] for call in _CALLS.values()])],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project / "site"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    parts = re.split(r"^STATUS (\d+)$", done.stdout, flags=re.MULTILINE)
    outputs = [" ".join(part.split()) for part in parts[0::2]]
    return {name: (int(status), output) for name, output, status in zip(_CALLS, outputs, parts[1::2], strict=False)}


def test_it_is_a_plugin_of_pytest_by_its_entry_point() -> None:
    (point,) = importlib.metadata.entry_points(group="pytest11", name="sixfold")
    assert point.value == "sixfold.core.testing.pytest_option"


def test_without_its_options_it_imports_nothing_of_sixfold(runs: Runs) -> None:
    status, output = runs["nothing"]
    assert status == 0, output
    assert "2 passed" in output


def test_the_kit_comes_beside_the_projects_own_tests(runs: Runs) -> None:
    status, output = runs["beside"]
    assert status == 0, output
    assert "test_own.py::test_own PASSED" in output
    assert "config.yaml::imports_nothing_heavy PASSED" in output
    assert "config.yaml::novel.source::needs_no_network_the_second_time PASSED" in output
    assert "5 passed" in output


def test_a_configuration_on_the_command_line_comes_beside_paths(runs: Runs) -> None:
    status, output = runs["beside paths"]
    assert status == 0, output
    assert "5 passed" in output


def test_a_configuration_that_the_project_names_gives_way_to_paths(runs: Runs) -> None:
    assert "5 passed" in runs["in the project"][1]
    status, output = runs["a path in the project"]
    assert status == 0, output
    assert "1 passed" in output


def test_a_file_among_the_arguments_runs_the_kit_alone_and_one_check_has_a_name(runs: Runs) -> None:
    status, output = runs["one check"]
    assert status == 0, output
    assert "1 passed" in output


def test_a_broken_promise_is_told_in_words_without_a_traceback(runs: Runs) -> None:
    status, output = runs["broken"]
    assert status == 1
    assert "A reference that can't be read is a SourceError with words, not a defect." in output
    assert "raises KeyError: 'crate:NAME'. Raise a SourceError." in output
    assert "Traceback" not in output


def test_a_model_that_does_not_load_is_told_once_in_a_line_and_the_rest_is_skipped(runs: Runs) -> None:
    status, output = runs["does not load"]
    assert status == 1
    assert "1 failed, 4 passed, 7 skipped" in output
    assert (
        output.count("models.rock: TypeError: it sinks (stone_plugin.py, line 6, in load)") <= 2
    )  # and in pytest's summary
    assert "Traceback" not in output
    assert len(output) < 4000


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("no plugin", "--sixfold-config needs --sixfold-plugin NAME"),
        ("no file", "no file nothing.yaml in"),
        ("nothing to try", "no YAML file is among the arguments. Give the configuration"),
        ("misspelt", "No plugin 'self' is installed. Did you mean 'shelf'?"),
        ("no model", "config.yaml has no model of the plugin 'gateway'"),
        ("no configuration", "other.yaml"),
    ],
)
def test_a_mistake_of_the_call_is_told_with_what_to_do(call: str, words: str, runs: Runs) -> None:
    status, output = runs[call]
    assert status != 0
    assert words in output
