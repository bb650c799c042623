"""What the plugin declares, and how it knows its models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sixfold.core.errors import SourceError
from sixfold.core.family import ModelFiles
from sixfold.plugins.tts.kokoro_loader import find_network, read_vocabulary, read_voices
from sixfold.plugins.tts.plugin import detect_kokoro
from sixfold.plugins.tts.sentences import MAX_FIRST_CHARACTERS, split_at, split_sentences


def kokoro_folder(folder: Path, *, num_lengths: int = 510) -> Path:
    (folder / "kokoro.onnx").write_bytes(b"")
    (folder / "vocab.json").write_text(json.dumps({"vocab": {letter: i for i, letter in enumerate("AOᵊᵻ")}}))
    np.savez(folder / "voices.npz", anna=np.zeros((num_lengths, 1, 256), np.float32))
    return folder


def test_a_kokoro_folder_is_recognised_and_others_are_not(tmp_path: Path) -> None:
    assert detect_kokoro(ModelFiles(kokoro_folder(tmp_path))) == 100
    (tmp_path / "vocab.json").write_text("{}")
    assert detect_kokoro(ModelFiles(tmp_path)) == 0


def test_voices_and_vocabulary_are_read(tmp_path: Path) -> None:
    folder = kokoro_folder(tmp_path)
    assert read_vocabulary(folder) == {"A": 0, "O": 1, "ᵊ": 2, "ᵻ": 3}
    assert read_voices(folder)["anna"].shape == (510, 256)


def test_broken_folders_are_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="exactly one"):
        find_network(tmp_path)
    with pytest.raises(SourceError, match="vocab"):
        read_vocabulary(tmp_path)
    with pytest.raises(SourceError, match="voices"):
        read_voices(tmp_path)
    with pytest.raises(SourceError, match="509"):
        read_voices(kokoro_folder(tmp_path, num_lengths=509))
    (tmp_path / "voices.npz").write_bytes(b"nothing")
    with pytest.raises(SourceError, match="not a set of voices"):
        read_voices(tmp_path)


def test_sentences_end_where_a_reader_would_stop() -> None:
    text = 'Dr. Smith came at 3.5 today, to the U.K. office. He said "Go home!" Then J. R. Lee ran away.\n\nA new line'
    assert split_sentences(text) == (
        "Dr. Smith came at 3.5 today, to the U.K. office.",
        'He said "Go home!"',
        "Then J. R. Lee ran away.",
        "A new line",
    )


def test_a_long_first_sentence_is_cut_at_its_first_pause() -> None:
    text = (
        "When the sun had set behind the hills, " + "and the birds had gone to sleep in the trees, " * 3 + "it rained."
    )
    first, rest = split_sentences(text)
    assert first == "When the sun had set behind the hills,"
    assert len(first) <= MAX_FIRST_CHARACTERS
    assert f"{first} {rest}" == text


def test_tiny_sentences_are_joined() -> None:
    assert split_sentences("One. Two. Three. Four.") == ("One. Two. Three.", "Four.")


def test_nothing_is_lost_when_long_text_is_cut() -> None:
    for text in ("word " * 300, "x" * 1200, "a, " * 500):
        parts = split_at(text.strip(), 510)
        assert all(len(part) <= 510 for part in parts)
        assert "".join(parts).replace(" ", "") == text.replace(" ", "")
