"""Files that others wrote run no code here: a reader of the source finds every call that could let them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("core", "plugins", "scaling") for path in (ROOT / folder).rglob("*.py"))

PICKLE_WITHOUT_STRANGERS = {
    "core/parallel/codec.py": "between ranks of one server, over a socket pair that nobody else can open",
    "core/tokenization/processes.py": "between a server and its own child processes",
}
"""Modules that may unpickle, with the reason why no stranger wrote what they read."""


def calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the dotted name of what is called."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def risks(source: str) -> list[str]:
    """What in a module could run code of a file that it reads."""
    found: list[str] = []
    for name, call in calls(source):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if given.get("trust_remote_code", "False") != "False":
            found.append(f"{name}: trust_remote_code may be true")
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if given.get("allow_pickle", "False") != "False":
            found.append(f"{name}: allow_pickle may be true")
        if name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "joblib.load", "cloudpickle.loads"):
            found.append(f"{name} unpickles")
        if name in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system", "marshal.loads", "shelve.open"):
            found.append(name)
    return found


def test_no_file_of_a_stranger_can_run_code() -> None:
    found: list[str] = []
    for path in SOURCES:
        name = str(path.relative_to(ROOT))
        allowed = name in PICKLE_WITHOUT_STRANGERS
        found += [f"{name}: {risk}" for risk in risks(path.read_text()) if not (allowed and risk.endswith("unpickles"))]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=options.trust)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "pickle.load(file)",
        "yaml.load(text)",
    ],
)
def test_the_reader_finds_what_it_looks_for(line: str) -> None:
    assert len(risks(line)) == 1
