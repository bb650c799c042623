"""A modality whose libraries are not installed costs its own routes and one line; what is broken shows where."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sixfold.core.cli.server import load_apis
from sixfold.core.family import Family
from sixfold.core.hookspecs import Api, Plugin
from sixfold.core.plugins import Plugins, new_manager


class Payload(msgspec.Struct):
    pass


def plugins_with(face: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, requires: Sequence[str]) -> Plugins:
    """A plugin with a modality whose HTTP face is a module of this text."""
    (tmp_path / "drawing_face.py").write_text(face)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "drawing_face", raising=False)
    family = Family(
        name="drawing/pen",
        summary="Draws.",
        operations=frozenset(),
        loader="nowhere:load",
        input_type=Payload,
        output_type=Payload,
        requires=tuple(requires),
    )
    manager = new_manager()
    manager.register(
        Plugin(families=[family], apis=[Api(modality="drawing", factory="drawing_face:Face")]), name="outside"
    )
    return Plugins(manager)


def test_libraries_that_are_not_installed_are_told_in_one_line_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plugins = plugins_with("import no_such_ink.blue", tmp_path, monkeypatch, requires=["no_such_ink"])
    with caplog.at_level(logging.INFO):
        assert load_apis(plugins) == []
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.exc_info is None
    assert "no routes for 'drawing'" in record.getMessage()
    assert "no_such_ink" in record.getMessage()
    assert "pip install" in record.getMessage()


@pytest.mark.parametrize("face", ["import no_such_ink", "1 / 0", "Other = 1", "import json.no_such_part"])
def test_a_face_that_fails_otherwise_is_an_error_with_its_place(
    face: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # json is installed: to install it would not help.
    assert load_apis(plugins_with(face, tmp_path, monkeypatch, requires=["no_such_paper", "json"])) == []
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert "drawing" in record.getMessage()


def test_examples_of_an_older_form_are_refused_when_the_api_is_made() -> None:
    examples: Any = ("curl $url/v1/drawings",)
    with pytest.raises(TypeError, match="'drawing' must be a mapping from an operation to a call"):
        Api(modality="drawing", factory="drawing_face:Face", examples=examples)
