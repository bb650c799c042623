"""``sixfold hash-key`` as an operator uses it."""

from __future__ import annotations

import io

import pytest
import yaml

from sixfold.core.cli import main
from sixfold.core.serving.keys import KeyRing
from sixfold.core.serving.settings import ApiKeySettings


def entry_of(text: str) -> ApiKeySettings:
    (entry,) = yaml.safe_load(text)
    return ApiKeySettings.model_validate(entry)


def test_a_made_key_opens_the_server_whose_configuration_has_its_entry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hash-key", "ward: 7"]) == 0
    told = capsys.readouterr()
    key = told.err.strip().rpartition(" ")[2]
    assert key.startswith("sk-")
    assert key not in told.out
    ring = KeyRing((entry_of(told.out),), lambda: 0.0)
    assert ring.authenticate(f"Bearer {key}".encode()).name == "ward: 7"
    assert main(["hash-key", "ward: 7"]) == 0
    assert capsys.readouterr().out != told.out, "each is another"


def test_a_key_from_standard_input_is_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "k" * 20
    monkeypatch.setattr("sys.stdin", io.StringIO(key + "\n"))
    assert main(["hash-key", "lab", "--stdin"]) == 0
    told = capsys.readouterr()
    assert key not in told.out + told.err
    assert KeyRing((entry_of(told.out),), lambda: 0.0).authenticate(b"Bearer " + key.encode()).name == "lab"


@pytest.mark.parametrize("key", ["", "hunter2", "k" * 19, "k" * 20 + "ü", "kkkkkkkkkkkkkkkkkkkkkkkkk kkk"])
def test_a_key_that_can_be_guessed_or_not_be_sent_is_refused(
    key: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(key + "\n"))
    assert main(["hash-key", "lab", "--stdin"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "key" in told.err
    assert not key or key not in told.err
