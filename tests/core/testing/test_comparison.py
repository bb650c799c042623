"""Which contents of answers count as equal."""

from __future__ import annotations

import numpy as np
import pytest

from sixfold.core.testing.client import form_body
from sixfold.core.testing.comparison import difference


@pytest.mark.parametrize(
    ("expected", "found", "tolerance"),
    [
        ("a", "a", 0.0),
        ([1.0, 2.0], [1.0, 2.0 + 1e-9], 1e-6),
        ([[1.0], "b"], [[1.0], "b"], 0.0),
        ({"a": 1}, {"a": 1}, 0.0),
        (1000.0, 1000.5, 1e-3),
        (np.ones((2, 2)), np.ones((2, 2)), 0.0),
        ([], [], 0.0),
        (None, None, 0.0),
        (True, True, 0.0),
    ],
)
def test_equal_contents(expected: object, found: object, tolerance: float) -> None:
    assert difference(expected, found, tolerance) is None


@pytest.mark.parametrize(
    ("expected", "found", "words"),
    [
        ("a", "b", "content is 'a' first and 'b' then"),
        ([1.0, 2.0], [1.0, 2.5], "content differs in 1 of 2 numbers, by up to 0.5"),
        ([1.0, 2.0], [1.0], "has the shape"),
        (["a", "b"], ["a"], "2 members first and 1 then"),
        ({"a": [0.0]}, {"a": [1.0]}, "content.a differs"),
        ({"a": 1}, {"b": 1}, "has the members"),
        ([["a"], ["b"]], [["a"], ["c"]], r"content[1][0] is 'b'"),
        (float("nan"), float("nan"), "differs in 1 of 1"),
        (1, "1", "first and '1' then"),
        (True, 1, "is True first"),
        (np.zeros(3), np.zeros(4), "has the shape"),
    ],
)
def test_unequal_contents_are_told_with_the_place(expected: object, found: object, words: str) -> None:
    told = difference(expected, found, 1e-3)
    assert told is not None
    assert words in told


def test_the_words_say_when_each_was_seen() -> None:
    assert difference({"a": ["x"]}, {"a": ["y"]}, 0.0, when=("alone", "beside others")) == (
        "content.a[0] is 'x' alone and 'y' beside others"
    )


def test_a_form_holds_files_lists_and_values() -> None:
    body, media_type = form_body({"file": b"\x00\x01", "tags": ["a", "b"], "flag": True, "text": "x"})
    boundary = media_type.partition("boundary=")[2]
    parts = body.split(f"--{boundary}".encode())
    assert parts[-1] == b"--\r\n"
    assert b'name="file"; filename="file"' in parts[1]
    assert parts[1].endswith(b"\r\n\r\n\x00\x01\r\n")
    assert [part.rpartition(b"\r\n\r\n")[2] for part in parts[2:-1]] == [b"a\r\n", b"b\r\n", b"true\r\n", b"x\r\n"]
