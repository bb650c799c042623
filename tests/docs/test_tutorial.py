"""docs/tutorial-plugin.md is followed to the letter, in an environment of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from sixfold.core.cli.new_plugin import skeleton_files

TUTORIAL = (Path(__file__).parents[2] / "docs" / "tutorial-plugin.md").read_text()


@dataclass(frozen=True)
class Newcomer:
    """Somebody with an environment that has Sixfold, in a folder."""

    home: Path

    @property
    def project(self) -> Path:
        return self.home / "my-vectors"

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.home / "venv" / "bin" / "python", "-m", *arguments],
            cwd=self.project if self.project.exists() else self.home,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    """The packages of this environment show through; what is installed in the new one stays there."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    own = [path for path in sys.path if path.endswith("site-packages")]
    lines = [f"import site; site.addsitedir({path!r})" for path in own]
    (site / "zz_outer.pth").write_text("\n".join(lines) + "\n")
    return Newcomer(tmp_path)


def blocks(language: str) -> list[str]:
    """All blocks of the page in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", TUTORIAL, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines()]


def with_function(source: str, function: str) -> str:
    """The source with a method of this name replaced, or put at the end of its class."""
    name = re.search(r"def (\w+)", function)
    assert name is not None
    found = re.search(rf"^    def {name[1]}\(.*?(?=^    def |\Z)", source, flags=re.MULTILINE | re.DOTALL)
    if found is None:
        return f"{source.rstrip()}\n\n{function}"
    return source.replace(found[0], f"{function}\n")


def changed(source: str, diff: str) -> str:
    """The source after a change written with ``-``, ``+`` and context; ``@@`` stands where lines were left out."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        assert source.count(old) == 1, old
        source = source.replace(old, "".join(line[1:] for line in lines if line[0] in " +"))
    return source


@pytest.mark.slow
def test_a_newcomer_comes_to_a_tested_family_by_the_page_alone(newcomer: Newcomer) -> None:
    create = "sixfold new-plugin my-vectors --modality embedding"
    assert create in commands()
    made = newcomer.call("sixfold.core.cli", *create.split()[1:])
    assert made.returncode == 0, made.stdout
    install = newcomer.call("pip", "install", "-q", "--no-deps", "--no-build-isolation", "-e", ".[test]")
    assert install.returncode == 0, install.stdout
    first = newcomer.call("pytest")
    said = re.search(r"it says `(\d+ passed, \d+ skipped)`", TUTORIAL)
    assert said is not None
    assert said[1] in first.stdout, first.stdout

    _client, model_code, broken_forward, stats = blocks("python")
    dependencies, plugin_diff, model_diff = blocks("diff")
    (settings,) = blocks("json")
    project = newcomer.project / "pyproject.toml"
    project.write_text(changed(project.read_text(), dependencies))
    model = newcomer.project / "sixfold_my_vectors" / "model.py"
    model.write_text(model_code)
    (newcomer.project / "model" / "my-vectors.json").write_text(settings)
    own = newcomer.call("pytest")
    assert said[1] in own.stdout, own.stdout

    model.write_text(with_function(model_code, broken_forward))
    broken = newcomer.call("pytest")
    assert "1 failed" in broken.stdout, broken.stdout
    assert "my-vectors: answers_alike_alone_and_beside_others" in broken.stdout
    assert "Family.batch_tolerance is 0" in broken.stdout

    plugin = newcomer.project / "sixfold_my_vectors" / "plugin.py"
    plugin.write_text(changed(plugin.read_text(), plugin_diff))
    init = '        self.dimension = settings.get("dimension", 256)\n'
    assert "`self.lower = context.options.lower` and `self.num_texts = 0` at the end of `__init__`" in TUTORIAL
    longer = model_code.replace(init, f"{init}        self.lower = context.options.lower\n        self.num_texts = 0\n")
    config = newcomer.project / "config.yaml"
    options = re.search(r"by `(options: .*)` below `(source: .*?)`", TUTORIAL)
    assert options is not None
    assert f"    {options[2]}\n" in config.read_text()
    config.write_text(config.read_text().replace(options[2], f"{options[2]}\n    {options[1]}"))
    model.write_text(with_function(changed(longer, model_diff), stats))
    last = newcomer.call("pytest")
    assert said[1] in last.stdout, last.stdout
    one = re.search(r"`pytest (config\.yaml::\S+)`", TUTORIAL)
    assert one is not None
    assert "1 passed" in newcomer.call("pytest", one[1]).stdout


def test_the_family_of_the_page_is_as_short_as_it_says() -> None:
    written = {**skeleton_files("my-vectors", "embedding"), "sixfold_my_vectors/model.py": blocks("python")[1]}
    num_lines = sum(
        len(text.splitlines()) for place, text in written.items() if place.startswith("sixfold_my_vectors/")
    )
    assert f"that is a family of {num_lines} lines" in TUTORIAL
    assert num_lines < 60


def test_the_page_names_every_check() -> None:
    pytest.importorskip("litserve")
    from sixfold.core.testing.collection import SERVED_CHECKS, SUBJECT_CHECKS
    from sixfold.core.testing.source_checks import SOURCE_CHECKS

    listed = re.findall(r"^\| `(\w+)` \|", TUTORIAL, flags=re.MULTILINE)
    checks = (*SUBJECT_CHECKS, *SERVED_CHECKS, *SOURCE_CHECKS)
    assert listed == ["imports_nothing_heavy", *(check.__name__ for check in checks)]
