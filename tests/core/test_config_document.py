"""Interpolation, and lines of values, for any text."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.core.errors import ConfigError
from sixfold.core.yaml_document import dotted, interpolate, parse_document

NAMES = st.text(string.ascii_letters + string.digits + "_", min_size=1).filter(lambda name: not name[0].isdigit())
VALUES = st.text().filter(lambda value: "\x00" not in value)


@given(text=st.text(alphabet=st.one_of(st.sampled_from("${}:-A"), st.characters())))
def test_an_escaped_text_comes_back_as_it_was(text: str) -> None:
    assert interpolate(text.replace("${", "$${"), {}) == text


@given(text=st.text().filter(lambda text: "${" not in text))
def test_a_text_without_variables_stays_as_it_is(text: str) -> None:
    assert interpolate(text, {}) == text


@given(name=NAMES, value=VALUES, before=st.text("ab $-:"), after=st.text("ab $-:}"))
def test_a_value_is_inserted_literally_and_never_read_again(name: str, value: str, before: str, after: str) -> None:
    # A dollar sign directly before the reference would escape it.
    before = before.rstrip("$")
    assert interpolate(f"{before}${{{name}}}{after}", {name: value}) == before + value + after


@given(name=NAMES, default=st.text().filter(lambda text: "}" not in text))
def test_the_default_is_used_when_the_variable_is_unset_or_empty(name: str, default: str) -> None:
    reference = f"${{{name}:-{default}}}"
    assert interpolate(reference, {}) == interpolate(reference, {name: ""}) == default
    assert interpolate(reference, {name: "set"}) == "set"


@given(name=NAMES)
def test_an_unset_variable_without_a_default_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(ConfigError, match=f"variable {name} is not set"):
        interpolate(f"${{{name}}}", {})


def test_a_set_but_empty_variable_without_a_default_is_empty() -> None:
    assert interpolate("a${X}b", {"X": ""}) == "ab"


def test_values_from_the_environment_cannot_change_the_structure_of_the_file() -> None:
    document = parse_document("a: ${X}\nb: 1", "f", {"X": "1\nc: 2"})
    assert document.root == {"a": "1\nc: 2", "b": 1}


def test_keys_are_not_interpolated() -> None:
    assert parse_document("${X}: 1", "f", {"X": "a"}).root == {"${X}": 1}


def test_each_key_and_item_knows_its_line() -> None:
    document = parse_document("a:\n  - x\n  - {b: 1,\n     c: 2}\n", "f", {})
    assert document.where(("a",)) == "f:1"
    assert document.where(("a", 0)) == "f:2"
    assert document.where(("a", 1, "c")) == "f:4"
    assert document.where(("a", 1, "missing")) == "f:3"
    assert document.where(("elsewhere",)) == "f"


def test_a_location_is_written_with_dots_and_brackets() -> None:
    assert dotted(("models", "a", "aliases", 0)) == "models.a.aliases[0]"


@pytest.mark.parametrize("text", ["[" * 3000, "{a: " * 3000, "[? " * 3000, "[" * 101 + "]" * 101])
def test_a_file_that_is_nested_too_deeply_is_refused_before_it_is_read_to_its_end(text: str) -> None:
    with pytest.raises(ConfigError, match="deeper than 100 levels"):
        parse_document(f"models: {text}", "deep.yaml", {})


def test_a_hundred_levels_are_no_error() -> None:
    parse_document(f"models: {'[' * 99}{']' * 99}", "deep.yaml", {})
